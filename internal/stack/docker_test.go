package stack

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"switchyard/internal/testkit"
)

// newStack returns a stack in a new folder, whose docker prints the outputs.
func newStack(t *testing.T, outputs testkit.DockerOutputs) *Stack {
	t.Helper()
	testkit.FakeDocker(t, outputs)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, DefaultFile), []byte("services: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir, DefaultFile, "yard")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestProgramsRunBesideAService(t *testing.T) {
	s := newStack(t, testkit.DockerOutputs{
		"exec -T -e PGUSER=postgres -e PGDATABASE=switchyard postgres psql -c SELECT 1": "1\n",
		"exec -T redis sh -c": "Error: no such service: redis\n",
	})
	var out bytes.Buffer
	if err := s.Run(t.Context(), PostgresService, Program{Args: []string{"psql", "-c", "SELECT 1"}, Stdout: &out}); err != nil || out.String() != "1\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	if err := s.Run(t.Context(), RedisService, Program{Args: []string{"redis-cli", "ping"}}); !errors.Is(err, ErrNoService) {
		t.Errorf("a service that the stack does not have: %v", err)
	}
}

// A service runs while one of its containers does.
func TestServicesAreRead(t *testing.T) {
	container := func(service, status string) string {
		return fmt.Sprintf(`{"Name":"/%s-%s","State":{"Status":"%[2]s"},"Config":{"Labels":{"com.docker.compose.service":"%[1]s"}}}`, service, status)
	}
	s := newStack(t, testkit.DockerOutputs{"inspect --type container": "[" + strings.Join([]string{
		container("app_blue", "running"), container("app_blue", "exited"), container("postgres", "exited"), container("redis", "restarting"),
	}, ",") + "]"})
	services, err := s.Services(t.Context())
	if err != nil || len(services) != 3 || !services["app_blue"] || services["postgres"] || !services["redis"] {
		t.Errorf("%v, %v", services, err)
	}
	if services, err = newStack(t, testkit.DockerOutputs{"ps -aq": "\n"}).Services(t.Context()); err != nil || len(services) != 0 {
		t.Errorf("%v, %v", services, err)
	}
}

// Services are stopped with one command, so that no node waits for the drain of
// another.
func TestServicesAreStoppedTogether(t *testing.T) {
	s := newStack(t, testkit.DockerOutputs{"stop app_blue app_green postgres": "", "stop redis": "Error: no such container"})
	if err := s.Stop(t.Context(), "app_blue", "app_green", PostgresService); err != nil {
		t.Error(err)
	}
	if err := s.Stop(t.Context(), RedisService); err == nil || !strings.Contains(err.Error(), "stop redis: ") || !strings.Contains(err.Error(), "no such container") {
		t.Errorf("%v", err)
	}
}

func TestThePrimaryIsRecordedInAFile(t *testing.T) {
	s := newStack(t, nil)
	if name, err := s.Primary(); err != nil || name != PostgresService {
		t.Errorf("without a record: %q, %v", name, err)
	}
	if err := os.MkdirAll(filepath.Join(s.Dir, "state", "postgres"), 0o755); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(primaryFile(s), s.StateDir()+"/") {
		t.Errorf("%s is outside of the state folder", primaryFile(s))
	}
	if err := s.SetPrimary(PostgresReplicaService); err != nil {
		t.Fatal(err)
	}
	if name, err := s.Primary(); err != nil || name != PostgresReplicaService {
		t.Errorf("%q, %v", name, err)
	}
	if err := s.SetPrimary("somebody"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Primary(); err == nil || !strings.Contains(err.Error(), `names "somebody"`) {
		t.Errorf("%v", err)
	}
}

func TestContainersAreReadFromDocker(t *testing.T) {
	s := newStack(t, testkit.DockerOutputs{"inspect --type container": `
[{"Name":"/yard-redis-1","State":{"Status":"exited","ExitCode":137},"RestartCount":2,"Config":{"Labels":{"com.docker.compose.service":"redis"}},"NetworkSettings":{"Networks":{"back":{"IPAddress":""}}}},
 {"Name":"/yard-app_blue-1","State":{"Status":"running","Running":true,"Health":{"Status":"healthy"}},"Config":{"Labels":{"com.docker.compose.service":"app_blue"}},"NetworkSettings":{"Networks":{"b":{"IPAddress":"10.0.0.3"},"a":{"IPAddress":"10.0.0.2"}}}}]
`})
	all, err := s.Containers(t.Context())
	if err != nil || len(all) != 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	if c := all[0]; c != (Container{Name: "yard-app_blue-1", Service: "app_blue", Running: true, Status: "running", Health: "healthy", Address: "10.0.0.2"}) {
		t.Errorf("%+v", c)
	}
	if c := all[1]; c.Running || c.Status != "exited with 137" || c.Restarts != 2 {
		t.Errorf("%+v", c)
	}
}

// A container that is paused or between two starts does not run.
func TestAPausedContainerDoesNotRun(t *testing.T) {
	for _, status := range []string{"paused", "restarting"} {
		c := inspectedContainer{RestartCount: 1}
		c.State.Running, c.State.Status, c.State.ExitCode = true, status, 3
		if got := c.container(); got.Running || got.Status != status || got.ExitReason != "exit code 3" {
			t.Errorf("%+v", got)
		}
	}
}

// Output of docker that can't be read is an error that names the cause. A stack
// without containers is no error for those who may start some.
func TestUnreadableContainersAreReported(t *testing.T) {
	for says, output := range map[string]string{
		"docker inspect one two: exit status 1: Error: cannot connect": "Error: cannot connect",
		"docker inspect: invalid character":                            "no JSON",
		"docker inspect: it printed no container":                      "[]",
	} {
		s := newStack(t, testkit.DockerOutputs{"inspect --type container": output})
		if _, err := s.Containers(t.Context()); err == nil || !strings.Contains(err.Error(), "list the containers: "+says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	empty := newStack(t, testkit.DockerOutputs{"ps -aq": ""})
	if _, err := empty.Containers(t.Context()); !errors.Is(err, ErrNoContainers) || !strings.HasPrefix(err.Error(), "yard has no container: is the stack up?") {
		t.Error(err)
	}
	if s, err := empty.Replicas().Inspect(t.Context()); err != nil || len(s.Replicas) != 0 {
		t.Error(s, err)
	}
}

func TestWithoutTheComposePlugin(t *testing.T) {
	for _, message := range []string{"unknown shorthand flag: 'p' in -p", "docker: 'compose' is not a docker command."} {
		dir := t.TempDir()
		script := "#!/bin/sh\necho \"" + message + "\nSee 'docker --help'.\" >&2\nexit 125\n"
		if err := os.WriteFile(filepath.Join(dir, "docker"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
		s := &Stack{Dir: t.TempDir(), File: DefaultFile, Project: "yard"}
		if _, err := s.Services(t.Context()); err == nil || !strings.Contains(err.Error(), "no Compose v2: install its plugin") {
			t.Errorf("%s: %v", message, err)
		}
	}
}

func TestWithoutDockerOrAStack(t *testing.T) {
	s := newStack(t, nil)
	t.Setenv("PATH", t.TempDir())
	if _, err := s.Services(t.Context()); err == nil || !strings.Contains(err.Error(), "docker is not installed on this host") {
		t.Errorf("%v", err)
	}
	if _, err := Open(t.TempDir(), DefaultFile, "yard"); err == nil || !strings.Contains(err.Error(), "name its folder with --dir") {
		t.Errorf("%v", err)
	}
}

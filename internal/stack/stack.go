// Package stack is the commands' side of a stack on this host: its folder and .env,
// its containers and replicas, images, Traefik's files and API, Prometheus, and the
// programs and the lock that all of this needs. It acts and reports; its callers
// decide. deploy, inspect and backup use it, so that a container, an error of docker or
// a query has one form in all commands.
//
// # Rejected
//
//   - The Docker SDK (docker/docker/client): 19 modules for ps, inspect, exec, rm and
//     pull, and Compose, which must create the replicas, has no API but its command.
//   - compose-go: 13 modules to read a file that `docker compose config` prints with
//     all values filled in, by the version that will run it.
//   - Querying replicas with docker exec: the image has only one program. A Linux host
//     reaches a container's address on the bridge in a millisecond.
//   - A runner in each package: the commands would differ in what Ctrl-C, a timeout and
//     a dead parent do to docker.
package stack

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
)

// A Stack is a stack of a compose file on this host.
type Stack struct {
	// Dir is the folder of the compose file, .env, secrets/ and state/. File is the
	// compose file's name, Project the stack's name in Compose.
	Dir, File, Project string
	// TraefikAPI and PrometheusURL are URLs. If empty, the addresses of the containers
	// are used.
	TraefikAPI, PrometheusURL string
	// TokenFile has a credential for probes. If empty, a token is signed with
	// secrets/app_jwt_secret.
	TokenFile string
	// Insecure skips the verification of the certificate in probes from outside.
	Insecure bool
	// Env has the assignments of .env, once LoadEnv has read them.
	Env map[string]string
	// Client sends requests to containers; nil means one that ignores proxies.
	Client *http.Client

	lock *Lock // if not nil, each program inherits it
}

// Ports inside the stack's networks.
const (
	appPort        = "8000"
	traefikPort    = "8080"
	prometheusPort = "9090"
)

// DefaultFile is the name of a stack's compose file.
const DefaultFile = "docker-compose.prod.yml"

// Open finds the stack in dir, or if dir is empty in the current folder or
// deploy/compose.
func Open(dir, file, project string) (*Stack, error) {
	if dir == "" {
		for _, dir = range []string{".", filepath.Join("deploy", "compose")} {
			if _, err := os.Stat(filepath.Join(dir, file)); err == nil {
				break
			}
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find the stack: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
		return nil, fmt.Errorf("%s is not in %s: name its folder with --dir", file, dir)
	}
	return &Stack{Dir: dir, File: file, Project: project}, nil
}

// LoadEnv reads .env, which must name the domain.
func (s *Stack) LoadEnv() (err error) {
	path := filepath.Join(s.Dir, ".env")
	if s.Env, err = readEnv(path); err != nil {
		return fmt.Errorf("%w: run setup first", err)
	}
	if s.Env["DOMAIN"] == "" {
		return fmt.Errorf("%s sets no DOMAIN", path)
	}
	return nil
}

// StateDir returns the folder in which promotions and deploys record their state.
func (s *Stack) StateDir() string { return filepath.Join(s.Dir, "state") }

// Replicas returns the replicas of both colors.
func (s *Stack) Replicas() *Replicas { return &Replicas{Stack: s, Traefik: s.Traefik()} }

// Traefik returns the stack's balancer.
func (s *Stack) Traefik() *Traefik {
	return &Traefik{Dir: filepath.Join(s.Dir, "..", "traefik"), Client: s.Client, API: func(ctx context.Context) (string, error) {
		if s.TraefikAPI != "" {
			return s.TraefikAPI, nil
		}
		return s.ServiceURL(ctx, TraefikService, traefikPort)
	}}
}

// Prometheus returns the stack's Prometheus.
func (s *Stack) Prometheus() *Prometheus {
	return &Prometheus{Client: s.Client, FindURL: func(ctx context.Context) (string, error) {
		if s.PrometheusURL != "" {
			return s.PrometheusURL, nil
		}
		url, err := s.ServiceURL(ctx, "prometheus", prometheusPort)
		if errors.Is(err, errNotRunning) {
			err = fmt.Errorf("%w: %w", err, ErrNoPrometheus)
		}
		return url, err
	}}
}

// Package stack checks the files of deploy/ against each other and against the service.
// With the build tag stack, it runs them on Docker (make e2e).
package stack

import (
	"bytes"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"text/template"
	"time"

	"gopkg.in/yaml.v3"

	"switchyard/internal/testkit"
)

const (
	root    = "../.."
	compose = root + "/deploy/compose"
	traefik = root + "/deploy/traefik"
)

// A composeFile has the parts of docker-compose.prod.yml that these tests check.
type composeFile struct {
	Name     string             `yaml:"name"`
	Version  string             `yaml:"version"`
	Services map[string]service `yaml:"services"`
	Networks map[string]struct {
		Internal bool `yaml:"internal"`
	} `yaml:"networks"`
	Volumes map[string]any `yaml:"volumes"`
	Secrets map[string]struct {
		File string `yaml:"file"`
	} `yaml:"secrets"`
}

type service struct {
	Image         string            `yaml:"image"`
	ContainerName string            `yaml:"container_name"`
	User          string            `yaml:"user"`
	Restart       string            `yaml:"restart"`
	Profiles      []string          `yaml:"profiles"`
	Command       []string          `yaml:"command"`
	Environment   map[string]string `yaml:"environment"`
	Ports         []string          `yaml:"ports"`
	Volumes       []string          `yaml:"volumes"`
	Secrets       []string          `yaml:"secrets"`
	Networks      listOrKeys        `yaml:"networks"`
	ReadOnly      bool              `yaml:"read_only"`
	Privileged    bool              `yaml:"privileged"`
	CapDrop       []string          `yaml:"cap_drop"`
	CapAdd        []string          `yaml:"cap_add"`
	SecurityOpt   []string          `yaml:"security_opt"`
	StopGrace     time.Duration     `yaml:"stop_grace_period"`
	CPUShares     int               `yaml:"cpu_shares"`
	Logging       struct {
		Options map[string]string `yaml:"options"`
	} `yaml:"logging"`
	Healthcheck struct {
		Test     any           `yaml:"test"`
		Interval time.Duration `yaml:"interval"`
	} `yaml:"healthcheck"`
	Deploy struct {
		Replicas  int `yaml:"replicas"`
		Resources struct {
			Limits struct {
				CPUs   string `yaml:"cpus"`
				Memory string `yaml:"memory"`
				Pids   int    `yaml:"pids"`
			} `yaml:"limits"`
		} `yaml:"resources"`
	} `yaml:"deploy"`
}

// listOrKeys has the elements of a list, or the keys of a mapping.
type listOrKeys []string

func (l *listOrKeys) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind == yaml.SequenceNode {
		return node.Decode((*[]string)(l))
	}
	for i := 0; i < len(node.Content); i += 2 {
		*l = append(*l, node.Content[i].Value)
	}
	return nil
}

// loadCompose reads docker-compose.prod.yml as Compose does, with these settings.
func loadCompose(t *testing.T, env map[string]string) composeFile {
	t.Helper()
	text, err := interpolate(read(t, compose+"/docker-compose.prod.yml"), env)
	if err != nil {
		t.Fatal(err)
	}
	var file composeFile
	decode(t, "docker-compose.prod.yml", text, &file)
	return file
}

// loadEnvExample reads .env.example.
func loadEnvExample(t *testing.T) map[string]string {
	t.Helper()
	env := map[string]string{}
	for n, line := range strings.Split(read(t, compose+"/.env.example"), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, found := strings.Cut(line, "=")
		if _, twice := env[name]; twice || !found || !regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`).MatchString(name) {
			t.Fatalf(".env.example:%d: %q is not NAME=value, or NAME occurs twice", n+1, line)
		}
		env[name] = value
	}
	return env
}

// composeVariable matches where Compose inserts a setting: ${NAME}, with a default after
// :- or an error after :?.
var composeVariable = regexp.MustCompile(`\$\$|\$\{([A-Z0-9_]+)(?::([-?])((?:[^{}]|\{[^{}]*\})*))?\}`)

func interpolate(text string, env map[string]string) (string, error) {
	var failed error
	out := composeVariable.ReplaceAllStringFunc(text, func(found string) string {
		if found == "$$" {
			return "$"
		}
		part := composeVariable.FindStringSubmatch(found)
		value := env[part[1]]
		switch {
		case value != "" || part[2] == "":
		case part[2] == "-":
			var err error
			if value, err = interpolate(part[3], env); err != nil {
				failed = err
			}
		default:
			failed = fmt.Errorf("%s: %s", part[1], part[3])
		}
		return value
	})
	return out, failed
}

// A dynamicFile has the parts of Traefik's dynamic configuration that these tests check.
type dynamicFile struct {
	HTTP struct {
		Routers map[string]struct {
			EntryPoints []string `yaml:"entryPoints"`
			Rule        string   `yaml:"rule"`
			Priority    int      `yaml:"priority"`
			Service     string   `yaml:"service"`
			Middlewares []string `yaml:"middlewares"`
			TLS         struct {
				CertResolver string `yaml:"certResolver"`
			} `yaml:"tls"`
		} `yaml:"routers"`
		Services map[string]struct {
			LoadBalancer struct {
				Strategy         string `yaml:"strategy"`
				ServersTransport string `yaml:"serversTransport"`
				Servers          []struct {
					URL string `yaml:"url"`
				} `yaml:"servers"`
				HealthCheck struct {
					Path     string        `yaml:"path"`
					Interval time.Duration `yaml:"interval"`
					Timeout  time.Duration `yaml:"timeout"`
				} `yaml:"healthCheck"`
			} `yaml:"loadBalancer"`
			Failover struct {
				Service  string `yaml:"service"`
				Fallback string `yaml:"fallback"`
				Errors   any    `yaml:"errors"`
			} `yaml:"failover"`
		} `yaml:"services"`
		Middlewares map[string]struct {
			Chain struct {
				Middlewares []string `yaml:"middlewares"`
			} `yaml:"chain"`
			RateLimit   *limit `yaml:"rateLimit"`
			InFlightReq *limit `yaml:"inFlightReq"`
			Headers     struct {
				STSSeconds           int  `yaml:"stsSeconds"`
				STSIncludeSubdomains bool `yaml:"stsIncludeSubdomains"`
				STSPreload           bool `yaml:"stsPreload"`
			} `yaml:"headers"`
		} `yaml:"middlewares"`
		ServersTransports map[string]any `yaml:"serversTransports"`
	} `yaml:"http"`
	TLS struct {
		Stores map[string]struct {
			DefaultCertificate struct {
				CertFile string `yaml:"certFile"`
				KeyFile  string `yaml:"keyFile"`
			} `yaml:"defaultCertificate"`
		} `yaml:"stores"`
		Options map[string]struct {
			MinVersion string `yaml:"minVersion"`
		} `yaml:"options"`
	} `yaml:"tls"`
}

// A limit is a rate, or a number of requests at once, of each source.
type limit struct {
	Average         int `yaml:"average"`
	Burst           int `yaml:"burst"`
	Amount          int `yaml:"amount"`
	SourceCriterion struct {
		IPStrategy *struct {
			Depth int `yaml:"depth"`
		} `yaml:"ipStrategy"`
	} `yaml:"sourceCriterion"`
}

// loadDynamic reads one file as Traefik does, with the environment from the compose
// file.
func loadDynamic(t *testing.T, path string, env map[string]string) dynamicFile {
	t.Helper()
	tmpl, err := template.New(path).Funcs(template.FuncMap{
		"env": func(name string) (string, error) {
			value, known := env[name]
			if !known {
				return "", fmt.Errorf("the compose file gives Traefik no %s", name)
			}
			return value, nil
		},
		"splitList": func(sep, s string) []string { return strings.Split(s, sep) },
		"trim":      strings.TrimSpace,
		"quote":     func(s string) string { return fmt.Sprintf("%q", s) },
	}).Parse(read(t, filepath.Join(traefik, path)))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := tmpl.Execute(&out, nil); err != nil {
		t.Fatal(err)
	}
	var file dynamicFile
	decode(t, path, out.String(), &file)
	return file
}

func decode(t *testing.T, name, text string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, text)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	return string(testkit.ReadFile(t, path))
}

package http

import (
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"

	"switchyard/web"
)

// A document is openapi.yaml or asyncapi.yaml as it is served, with its schemas.
type document struct {
	t        *testing.T
	name     string
	root     any
	compiler *jsonschema.Compiler
	schemas  map[string]*jsonschema.Schema // by pointer
}

// documents are those that were read before, by name: to parse one and to compile its
// schemas takes longer than most tests. Tests that use them do not run in parallel.
var documents = map[string]*document{}

func readDocument(t *testing.T, name string) *document {
	t.Helper()
	d := documents[name]
	if d == nil {
		d = parseDocument(t, name)
		documents[name] = d
	}
	own := *d
	own.t = t
	return &own
}

func parseDocument(t *testing.T, name string) *document {
	t.Helper()
	text, err := web.Files.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var parsed any
	if err := yaml.Unmarshal(text, &parsed); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	b, err := json.Marshal(parsed)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	root, err := jsonschema.UnmarshalJSON(strings.NewReader(string(b)))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	d := &document{name: name, root: root, compiler: jsonschema.NewCompiler(), schemas: map[string]*jsonschema.Schema{}}
	if err := d.compiler.AddResource("doc:///"+name, root); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return d
}

// at returns the value at a path, following references, and the pointer to it. It
// returns nil if there is none.
func (d *document) at(path ...string) (any, string) {
	d.t.Helper()
	v, pointer := d.root, ""
	for _, name := range path {
		v, pointer = d.follow(v, pointer)
		m, _ := v.(map[string]any)
		if v = m[name]; v == nil {
			return nil, ""
		}
		pointer += "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
	}
	return d.follow(v, pointer)
}

func (d *document) follow(v any, pointer string) (any, string) {
	d.t.Helper()
	m, _ := v.(map[string]any)
	ref, ok := m["$ref"].(string)
	if !ok {
		return v, pointer
	}
	path := strings.Split(strings.TrimPrefix(ref, "#/"), "/")
	for i := range path {
		path[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(path[i])
	}
	target, where := d.at(path...)
	if target == nil {
		d.t.Fatalf("%s: %s leads nowhere", d.name, ref)
	}
	return target, where
}

// object is at for an object. It returns an empty one if there is none.
func (d *document) object(path ...string) map[string]any {
	d.t.Helper()
	v, _ := d.at(path...)
	m, _ := v.(map[string]any)
	return m
}

// strings is at for a list of strings.
func (d *document) strings(path ...string) (list []string) {
	d.t.Helper()
	v, _ := d.at(path...)
	items, _ := v.([]any)
	for _, item := range items {
		list = append(list, fmt.Sprint(item))
	}
	return list
}

// check validates a value against the schema at a path.
func (d *document) check(value any, path ...string) error {
	d.t.Helper()
	_, pointer := d.at(path...)
	if pointer == "" {
		return fmt.Errorf("no schema at %v", path)
	}
	s := d.schemas[pointer]
	if s == nil {
		var err error
		if s, err = d.compiler.Compile("doc:///" + d.name + "#" + pointer); err != nil {
			d.t.Fatalf("%s: %v", d.name, err)
		}
		d.schemas[pointer] = s
	}
	return s.Validate(value)
}

// checkText validates JSON against the schema at a path.
func (d *document) checkText(text string, path ...string) error {
	d.t.Helper()
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		return fmt.Errorf("%q is no JSON: %w", text, err)
	}
	return d.check(v, path...)
}

// checkAnswer validates an answer against its operation: status, headers, content
// type and body.
func (d *document) checkAnswer(res *http.Response, body, route, method string) error {
	d.t.Helper()
	base := []string{"paths", route, strings.ToLower(method), "responses", fmt.Sprint(res.StatusCode)}
	if answer, _ := d.at(base...); answer == nil {
		return fmt.Errorf("status %d is not documented", res.StatusCode)
	}
	for name := range d.object(append(base, "headers")...) {
		if err := d.check(res.Header.Get(name), append(base, "headers", name, "schema")...); err != nil {
			return fmt.Errorf("header %s: %w", name, err)
		}
	}
	contents := d.object(append(base, "content")...)
	if len(contents) == 0 {
		if body != "" && res.StatusCode != http.StatusSwitchingProtocols {
			return fmt.Errorf("a body that is not documented: %s", body)
		}
		return nil
	}
	kind, _, err := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if err != nil {
		return fmt.Errorf("content type: %w", err)
	}
	if contents["*/*"] != nil {
		kind = "*/*"
	}
	if contents[kind] == nil {
		return fmt.Errorf("content type %s is not documented", kind)
	}
	schema := append(slices.Clone(base), "content", kind, "schema")
	if kind == "*/*" || kind == "text/plain" {
		return d.check(body, schema...)
	}
	return d.checkText(body, schema...)
}

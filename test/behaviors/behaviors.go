// Package behaviors is the list of what every client of Switchyard does, as
// scripts for tests of clients in any language: the same server, the same calls,
// the same expectations. README.md defines the words of the scripts.
package behaviors

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
)

//go:embed *.json
var files embed.FS

// A Behavior is one script. It begins with a live connection, unless Begin is
// "not welcomed": then the server has accepted the connection only.
type Behavior struct {
	Name string
	// Codes and Errors make one behavior for each value, named after it. The
	// value replaces "each" in the steps.
	Codes  []int
	Errors []string
	Begin  string
	// Random is the number in [0, 1) that the client's random source returns.
	Random float64
	// Tokens are the results of the user's token source, in order: null is a
	// failure, "never" a token that never arrives, "late t" the token t after a
	// second. Without Tokens the client has no token source.
	Tokens []*string
	// ResendFor is how long the user wants a publish to be resent, in
	// milliseconds; 0 leaves it to the client.
	ResendFor int64
	// Welcome has fields for each welcome, which replace the usual ones.
	Welcome map[string]any
	Steps   []Step
}

// A Step is one line of a script: an action of the server or the user, the
// passing of time, or an expectation of the client. Exactly one of the first four
// fields is set.
type Step struct {
	Server, User, Client, Time string

	// On is the number of the connection, from 1; 0 is the newest one.
	On              int
	Room, ID, Epoch string
	As, Of, Answers string
	After, Before   *int64
	Limit, Size     int
	Last            int
	Data            json.RawMessage
	Taken           bool
	Frame           map[string]any
	Text            string
	Welcome         map[string]any
	Without         []string
	Events, States  []string
	Seqs            []int64
	Count           *int
	Ack             map[string]any
	State, Token    string
	Session         string
	Unknown         bool
	MS              float64
	// Code is a close code and Error the code of an error; "each" in the files.
	Code  any
	Error string
}

// CloseCode returns the close code of the step, 0 for none.
func (s Step) CloseCode() int {
	code, _ := s.Code.(float64)
	return int(code)
}

// All returns every behavior, one for each of its codes and errors. An unknown
// field in a file is an error.
func All() ([]Behavior, error) {
	names, err := fs.Glob(files, "*.json")
	if err != nil {
		return nil, fmt.Errorf("list the behaviors: %w", err)
	}
	var all []Behavior
	for _, name := range names {
		b, err := files.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		var list []Behavior
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		if err := d.Decode(&list); err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		for _, behavior := range list {
			all = append(all, behavior.expand()...)
		}
	}
	return all, nil
}

// Names returns the names of all behaviors, sorted.
func Names() ([]string, error) {
	all, err := All()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, b := range all {
		names = append(names, b.Name)
	}
	slices.Sort(names)
	return names, nil
}

// expand returns one behavior for each code and error of b, or b itself.
func (b Behavior) expand() []Behavior {
	var each []any
	for _, code := range b.Codes {
		each = append(each, float64(code))
	}
	for _, code := range b.Errors {
		each = append(each, code)
	}
	if len(each) == 0 {
		return []Behavior{b}
	}
	var all []Behavior
	for _, value := range each {
		one := b
		one.Steps = slices.Clone(b.Steps)
		for i := range one.Steps {
			one.Steps[i].substitute(value)
		}
		one.Name = label(value) + ": " + b.Name
		all = append(all, one)
	}
	return all
}

func label(value any) string {
	if code, ok := value.(float64); ok {
		return strconv.Itoa(int(code))
	}
	return value.(string)
}

// substitute replaces "each" in the step by value.
func (s *Step) substitute(value any) {
	if s.Code == "each" {
		s.Code = value
	}
	if s.Error == "each" {
		s.Error = value.(string)
	}
	if s.Frame["code"] == "each" {
		frame := make(map[string]any, len(s.Frame))
		for k, v := range s.Frame {
			frame[k] = v
		}
		frame["code"] = value
		s.Frame = frame
	}
}

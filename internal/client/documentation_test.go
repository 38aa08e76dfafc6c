package client_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"switchyard/internal/client"
	"switchyard/internal/message"
)

// documented has the lines of docs/clients.md.
func documented(ctx context.Context) error {
	c, err := client.Dial(ctx, client.Options{URLs: []string{"wss://chat.example.com/ws"}})
	if err != nil {
		return err // ctx ended, or a *client.ClosedError says with which code it was turned away
	}
	defer c.Close()

	_, err = c.Join(ctx, "lobby", client.Start(), client.Handler{
		Message: func(m message.Message) { fmt.Println(m.Seq, m.From, string(m.Data)) },
		Gap:     func(g client.Gap) { fmt.Println(g.From, "to", g.To, g.Reason) },
	})
	if err != nil {
		return err
	}
	ack, err := c.Publish(ctx, "lobby", json.RawMessage(`{"text":"hello"}`), "")
	_ = ack
	return err
}

// The Go program of docs/clients.md compiles, and behaves without a connection as its
// comment says.
func TestTheDocumentedProgramCompiles(t *testing.T) {
	page, err := os.ReadFile("../../docs/clients.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("documentation_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```go\n")
	program, _, found := strings.Cut(rest, "```")
	if !found {
		t.Fatal("docs/clients.md has no Go program")
	}
	var indented strings.Builder
	for line := range strings.Lines(program) {
		if line != "\n" {
			indented.WriteString("\t")
		}
		indented.WriteString(line)
	}
	if !strings.Contains(string(source), indented.String()) {
		t.Errorf("the program of docs/clients.md is not the one here:\n%s", program)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := documented(ctx); err == nil {
		t.Error("without a connection: no error")
	}
}

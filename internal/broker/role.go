package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

// errReplica is the error of a connection to a replica. What is published there
// reaches only the replica's own subscribers.
var errReplica = errors.New("this server is a read-only replica; the address must lead to the primary")

// The questions for the role of a server, and how to read the answer. Redis
// allows HELLO to every user. The others are for servers and proxies that do not
// know it, or whose administrator has renamed it.
var roleQuestions = []struct {
	command   []any
	isReplica func(answer any) bool
}{
	{[]any{"hello"}, func(answer any) bool {
		// In a cluster, a replica passes broadcasts on to all other servers.
		return field(answer, "mode") != "cluster" && isReplicaRole(field(answer, "role"))
	}},
	{[]any{"role"}, func(answer any) bool {
		parts, _ := answer.([]any)
		return len(parts) > 0 && isReplicaRole(parts[0])
	}},
	{[]any{"info", "replication"}, func(answer any) bool {
		return strings.Contains(fmt.Sprint(answer), "role:slave")
	}},
}

func isReplicaRole(role any) bool { return role == "replica" || role == "slave" }

// field returns the value of a field in an answer of names and values.
func field(answer any, name string) any {
	pairs, _ := answer.([]any)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i] == name {
			return pairs[i+1]
		}
	}
	return nil
}

// refuseReplica returns errReplica if the connection leads to a replica, and an
// error if it breaks. A server that answers none of the questions counts as a
// primary: the services that forbid them lead to one only. It is the OnConnect
// function of clients.
func refuseReplica(ctx context.Context, conn *redis.Conn) error {
	for _, question := range roleQuestions {
		cmd := redis.NewCmd(ctx, question.command...)
		err := conn.Process(ctx, cmd)
		var refused redis.Error
		switch {
		case errors.As(err, &refused):
			continue
		case err != nil:
			return fmt.Errorf("ask for the role: %w", err)
		case question.isReplica(cmd.Val()):
			return errReplica
		}
		return nil
	}
	return nil
}

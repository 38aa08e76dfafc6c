package testkit

import "testing"

// StartServerProgram is StartServer with a program that the test has built, such as
// that of an earlier release.
func StartServerProgram(tb testing.TB, program string, env map[string]string) *Server {
	tb.Helper()
	return startServer(tb, program, env)
}

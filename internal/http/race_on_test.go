//go:build race

package http

// maxIdleBytes is larger with the race detector, which makes stacks larger.
const maxIdleBytes = 20 << 10

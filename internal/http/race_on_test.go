//go:build race

package http

// mostIdle is the bound with the race detector, which makes stacks larger.
const mostIdle = 20 << 10

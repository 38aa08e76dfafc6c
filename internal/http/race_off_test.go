//go:build !race

package http

const mostIdle = 16 << 10

//go:build !race

package http

// maxIdleBytes bounds the memory of an idle connection, its client included.
const maxIdleBytes = 16 << 10

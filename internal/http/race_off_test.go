//go:build !race

package http

const maxIdleBytes = 16 << 10

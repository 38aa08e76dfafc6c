//go:build !unix

package app

// descriptorLimit reports that no limit is known.
func descriptorLimit() (limit int, ok bool) { return 0, false }

//go:build scenario

// Package nobuild does not compile.
package nobuild

func number() int {
	return "not a number"
}

// Package nobuild does not compile.
package nobuild

// F has the fault.
func F() int { return undefinedName }

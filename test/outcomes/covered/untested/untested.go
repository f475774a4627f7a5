// Package untested has no test files.
package untested

// Nothing does nothing.
func Nothing() {}

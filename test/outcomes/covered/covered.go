// Package covered is tested by the package below it.
package covered

// Answer is what the test of another package looks at.
func Answer() int { return 42 }

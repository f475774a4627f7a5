//go:build scenario

package nobuild

import "testing"

func TestNeverRuns(t *testing.T) { number() }

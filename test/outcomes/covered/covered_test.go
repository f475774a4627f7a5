package covered

import "testing"

func TestRoot(t *testing.T) {}

package novet

import (
	"fmt"
	"testing"
)

func TestNever(t *testing.T) { fmt.Printf("%d\n", "no number") }

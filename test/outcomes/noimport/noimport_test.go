package noimport

import (
	"testing"

	_ "example.com/nowhere/to/be/found"
)

func TestNever(t *testing.T) {}

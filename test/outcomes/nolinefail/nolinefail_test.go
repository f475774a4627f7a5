package nolinefail

import (
	"fmt"
	"testing"
)

func TestPrints(t *testing.T) { fmt.Print("progress: 100%") }

func TestFailsWithReason(t *testing.T) {
	fmt.Print("progress: 50%")
	t.Error("the real failure")
}

func TestFailsInSilence(t *testing.T) {
	fmt.Print("progress: 51%")
	t.Fail()
}

func TestAfter(t *testing.T) {}

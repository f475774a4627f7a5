package parallel

import (
	"fmt"
	"testing"
	"time"
)

func together(t *testing.T, fails bool) {
	t.Parallel()
	for i := 0; i < 4; i++ {
		fmt.Print(t.Name(), " prints ", i, "\n")
		t.Log("logs", i)
		time.Sleep(10 * time.Millisecond)
	}
	if fails {
		t.Error("the reason of", t.Name())
	}
}

func TestA(t *testing.T) { together(t, false) }

func TestB(t *testing.T) { together(t, true) }

func TestC(t *testing.T) { together(t, false) }

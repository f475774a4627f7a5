package words

import (
	"os"
	"testing"
	"time"
)

func TestCount(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       int
	}{
		{"nothing", "", 0},
		{"only spaces", " \t\n", 0},
		{"one", "word", 1},
		{"two lines", "two\nlines", 2},
		{"not only ASCII", "größe 大きさ", 2},
	} {
		c := c
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := Count(c.text); got != c.want {
				t.Errorf("Count(%q) = %d, want %d", c.text, got, c.want)
			}
		})
	}
}

func TestCountsLongText(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: takes half a second")
	}
	time.Sleep(500 * time.Millisecond)
	text := make([]byte, 1<<20)
	for i := range text {
		text[i] = "a "[i%2]
	}
	if got := Count(string(text)); got != 1<<19 {
		t.Errorf("Count = %d, want %d", got, 1<<19)
	}
}

func TestFailsWhenTold(t *testing.T) {
	if os.Getenv("SAMPLE_FAIL") == "1" {
		t.Error("SAMPLE_FAIL=1: failing as told")
	}
}

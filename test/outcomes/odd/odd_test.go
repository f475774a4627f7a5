// Package odd has names and output that are hard to write to a file of XML.
package odd

import (
	"fmt"
	"strings"
	"testing"
)

func TestName(t *testing.T) {
	for _, name := range []string{"\"<&>'", "ünï 日本", "\x1b[31mred", "a (0.00s)", "]]>", "same", "same"} {
		t.Run(name, func(t *testing.T) {})
	}
}

func TestOutput(t *testing.T) {
	fmt.Print("\x1b[1;31mred\x1b[0m \x1b]0;title\x07 bell \x07 null \x00 not UTF-8 \xff ünï \ufffe ]]> &amp; <b>\n")
	t.Error("the reason: \x1b[32mgreen\x1b[0m ünï")
}

func TestLong(t *testing.T) {
	t.Run(strings.Repeat("p", 8000), func(t *testing.T) {})
	t.Run(strings.Repeat("f", 8000), func(t *testing.T) { t.Error("the reason of the long one") })
	t.Run(strings.Repeat("s", 8000), func(t *testing.T) { t.Skip("the long one is skipped") })
	// At this length Go 1.24 tells the start of the test as an event, and its end only in pieces of text.
	t.Run(strings.Repeat("b", 4070), func(t *testing.T) {})
}

func TestSkips(t *testing.T) { t.Skip("there is <no> moon") }

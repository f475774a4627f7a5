package fuzz

import "testing"

func FuzzSeed(f *testing.F) {
	f.Add("fine")
	f.Add("bad")
	f.Fuzz(func(t *testing.T, s string) {
		if s == "bad" {
			t.Error("the reason of the seed")
		}
	})
}

package benchfine

import "testing"

func BenchmarkFine(b *testing.B) { b.Log("a word") }

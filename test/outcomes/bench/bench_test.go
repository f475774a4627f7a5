package bench

import "testing"

func BenchmarkFine(b *testing.B) {}

func BenchmarkFailsLate(b *testing.B) {
	if b.N > 1 {
		b.Fatal("the late reason")
	}
}

func BenchmarkParts(b *testing.B) {
	b.Run("fine", func(b *testing.B) {})
	b.Run("fails", func(b *testing.B) { b.Error("the reason of a part") })
}

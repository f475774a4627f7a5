package skips

import "testing"

func TestSkips(t *testing.T) { t.Skip("there is no moon") }

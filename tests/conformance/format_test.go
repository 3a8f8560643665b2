package conformance

import (
	"bytes"
	"embed"
	"go/format"
	"io/fs"
	"testing"
)

//go:embed *.go encode/*.go hclspec/*.go
var sources embed.FS

func TestSourcesAreFormatted(t *testing.T) {
	files, err := fs.Glob(sources, "*.go")
	if err != nil {
		t.Fatal(err)
	}
	nested, err := fs.Glob(sources, "*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(files, nested...) {
		text, err := sources.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		formatted, err := format.Source(text)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(text, formatted) {
			t.Errorf("%s is not as gofmt writes it", name)
		}
	}
}

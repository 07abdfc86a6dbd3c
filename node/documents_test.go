package node

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestProtocolsPage keeps docs/protocols.md complete: every path and every MSC
// that the product's source names is on it.
func TestProtocolsPage(t *testing.T) {
	data, err := os.ReadFile("../docs/protocols.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(data)
	msc := regexp.MustCompile(`msc(\d{4})`)
	path := regexp.MustCompile(`^/[a-zA-Z_.{][^ ?]*[a-z}]$`)
	seen := 0
	for _, text := range literals(t, "../homeserver", "../signaling", "../sip", "../web") {
		for _, m := range msc.FindAllStringSubmatch(text, -1) {
			seen++
			if !strings.Contains(page, "MSC"+m[1]) {
				t.Errorf("%q: MSC%s is not on the page", text, m[1])
			}
		}
		text = strings.TrimSuffix(text, "/{$}") // ServeMux's word for "ends here"
		if !path.MatchString(text) {
			continue
		}
		seen++
		if !strings.Contains(page, text) && !strings.Contains(page, text+"/") {
			t.Errorf("the path %s is not on the page", text)
		}
	}
	if seen < 100 {
		t.Errorf("only %d paths and MSCs were found: the test looks in the wrong place", seen)
	}
}

// literals returns the string literals of the folders' product code.
func literals(t *testing.T, dirs ...string) []string {
	t.Helper()
	var texts []string
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					if text, err := strconv.Unquote(lit.Value); err == nil {
						texts = append(texts, text)
					}
				}
				return true
			})
		}
	}
	return texts
}

package config

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// maxFile bounds a configuration file and each secret file.
const maxFile = 1 << 20

// Load returns the defaults, changed by the file at path (none if path is
// empty) and by environ, a list as os.Environ returns it. The result has been
// validated.
func Load(path string, environ []string) (Config, error) {
	cfg := Default()
	if path != "" {
		data, err := readLimited(path)
		if err != nil {
			return Config{}, fmt.Errorf("read the configuration: %w", err)
		}
		if err := decode(&cfg, data); err != nil {
			return Config{}, fmt.Errorf("%s:\n%w", path, err)
		}
	}
	if err := applyEnv(&cfg, environ); err != nil {
		return Config{}, err
	}
	if err := cfg.Validate(); err != nil {
		return Config{}, err
	}
	return cfg, nil
}

// Parse is Load of a file's content, without an environment.
func Parse(data []byte) (Config, error) {
	cfg := Default()
	if err := decode(&cfg, data); err != nil {
		return Config{}, err
	}
	if err := cfg.Validate(); err != nil {
		return Config{}, err
	}
	return cfg, nil
}

// UnknownVariables returns the names of TRUNKHALL_ variables that set nothing.
// They are worth a warning and no more: container platforms add variables of
// their own that begin with a service's name.
func UnknownVariables(environ []string) []string {
	cfg := Default()
	known := envNames(settings(&cfg))
	var unknown []string
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if strings.HasPrefix(name, envPrefix) && !slices.Contains(known, name) && !inList(settings(&cfg), name) {
			unknown = append(unknown, name)
		}
	}
	return unknown
}

func envNames(all []setting) []string {
	var names []string
	for _, s := range all {
		names = append(names, EnvName(s.path))
	}
	for _, path := range secrets {
		names = append(names, EnvName(path)+"_FILE")
	}
	return names
}

// decode sets in cfg what the YAML text says.
func decode(cfg *Config, data []byte) error {
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return errors.New(yaml.FormatError(err, false, true))
	}
	d := &decoder{all: settings(cfg)}
	documents := 0
	for _, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		if documents++; documents > 1 {
			d.complain(doc.Body, "a second document; there may be one")
			break
		}
		d.section(doc.Body, "")
	}
	return errors.Join(d.errs...)
}

// A decoder goes through a document and sets the settings it meets.
type decoder struct {
	all  []setting
	set  []string // paths that were set
	errs []error
}

func (d *decoder) complain(at ast.Node, format string, args ...any) {
	line := 0
	if t := at.GetToken(); t != nil && t.Position != nil {
		line = t.Position.Line
	}
	d.errs = append(d.errs, fmt.Errorf("line %d: %s", line, fmt.Sprintf(format, args...)))
}

// section reads a mapping whose keys are settings or sections below path.
func (d *decoder) section(node ast.Node, path string) {
	if _, empty := node.(*ast.NullNode); empty {
		return // "turn:" with nothing below it
	}
	if _, comment := node.(*ast.CommentGroupNode); comment {
		return
	}
	mapping, ok := node.(ast.MapNode)
	if !ok {
		d.complain(node, "%s: must be a section with settings below it", orRoot(path))
		return
	}
	for pairs := mapping.MapRange(); pairs.Next(); {
		name := pairs.Key().String()
		if key, ok := pairs.Key().(*ast.StringNode); ok {
			name = key.Value
		}
		if path != "" {
			name = path + "." + name
		}
		d.entry(name, pairs.Key(), pairs.Value())
	}
}

func (d *decoder) entry(path string, key, value ast.Node) {
	if isSection(d.all, path) {
		d.section(value, path)
		return
	}
	if s, ok := find(d.all, path); ok {
		d.leaf(s, value)
		return
	}
	if of, ok := strings.CutSuffix(path, "_file"); ok && slices.Contains(secrets, of) {
		d.secret(of, value)
		return
	}
	var known []string
	for _, s := range d.all {
		known = append(known, s.path)
	}
	if near := closest(path, known); near != "" {
		d.complain(key, "%s: unknown; is %s meant?", path, near)
		return
	}
	d.complain(key, "%s: unknown", path)
}

func (d *decoder) leaf(s setting, value ast.Node) {
	if slices.Contains(d.set, s.path) {
		d.complain(value, "%s: set twice", s.path)
		return
	}
	d.set = append(d.set, s.path)
	if _, empty := value.(*ast.NullNode); empty {
		return // the default stays
	}
	files := d.takeFiles(s, value)
	fresh := reflect.New(s.value.Type())
	if err := yaml.NodeToValue(value, fresh.Interface(), yaml.Strict()); err != nil {
		if isList(s) {
			// Which of its many keys it was, the library knows.
			text, _, _ := strings.Cut(yaml.FormatError(err, false, false), "\n")
			d.complain(value, "%s: %s", s.path, text)
			return
		}
		d.complain(value, "%s: must be %s", s.path, describe(s.value.Type()))
		return
	}
	s.value.Set(fresh.Elem())
	for _, f := range files {
		d.fileInList(s, f)
	}
}

// A listFile is a secret in a list of sections that is in a file of its own.
type listFile struct {
	index int
	path  string // below the element: "auth.password"
	value ast.Node
}

// takeFiles takes the keys NAME_file of secrets out of a list of sections.
func (d *decoder) takeFiles(s setting, value ast.Node) []listFile {
	list, ok := value.(*ast.SequenceNode)
	if !ok {
		return nil
	}
	var files []listFile
	for _, path := range listSecrets[s.path] {
		for i, element := range list.Values {
			if value := takeKey(element, strings.Split(path+"_file", ".")); value != nil {
				files = append(files, listFile{i, path, value})
			}
		}
	}
	return files
}

// takeKey takes the key at the end of path out of a mapping and returns its value.
func takeKey(node ast.Node, path []string) ast.Node {
	mapping, ok := node.(*ast.MappingNode)
	if !ok {
		return nil
	}
	for i, pair := range mapping.Values {
		key, ok := pair.Key.(*ast.StringNode)
		if !ok || key.Value != path[0] {
			continue
		}
		if len(path) > 1 {
			return takeKey(pair.Value, path[1:])
		}
		mapping.Values = slices.Delete(mapping.Values, i, i+1)
		return pair.Value
	}
	return nil
}

// fileInList sets a secret of an element to what its file holds.
func (d *decoder) fileInList(s setting, f listFile) {
	path := fmt.Sprintf("%s[%d].%s", s.path, f.index, f.path)
	var name string
	if err := yaml.NodeToValue(f.value, &name); err != nil || name == "" {
		d.complain(f.value, "%s_file: must be the path of a file", path)
		return
	}
	secret, _ := find(leaves(s.value.Index(f.index), ""), f.path)
	if secret.value.String() != "" {
		d.complain(f.value, "%s: set twice, once by %s_file", path, path)
		return
	}
	if err := setFromFile(secret, name); err != nil {
		d.complain(f.value, "%s_file: %v", path, err)
	}
}

// secret sets a secret from the file that value names.
func (d *decoder) secret(path string, value ast.Node) {
	var name string
	if err := yaml.NodeToValue(value, &name); err != nil || name == "" {
		d.complain(value, "%s_file: must be the path of a file", path)
		return
	}
	s, _ := find(d.all, path)
	if slices.Contains(d.set, path) {
		d.complain(value, "%s: set twice, once by %s_file", path, path)
		return
	}
	d.set = append(d.set, path)
	if err := setFromFile(s, name); err != nil {
		d.complain(value, "%s_file: %v", path, err)
	}
}

// setFromFile sets a secret to what the file holds, without the newline that
// editors and shells put at its end.
func setFromFile(s setting, name string) error {
	data, err := readLimited(name)
	if err != nil {
		return err
	}
	text := strings.TrimSpace(string(data))
	if text == "" {
		return fmt.Errorf("%s is empty", name)
	}
	if s.value.Kind() == reflect.Slice {
		s.value.Set(reflect.ValueOf(strings.Fields(text)).Convert(s.value.Type()))
		return nil
	}
	s.value.SetString(text)
	return nil
}

// applyEnv sets in cfg what the environment says.
func applyEnv(cfg *Config, environ []string) error {
	values := make(map[string]string)
	for _, entry := range environ {
		if name, value, ok := strings.Cut(entry, "="); ok {
			values[name] = value
		}
	}
	var errs []error
	for _, s := range settings(cfg) {
		name := EnvName(s.path)
		text, given := values[name]
		if given {
			if err := setFromText(s.value, text); err != nil {
				errs = append(errs, fmt.Errorf("%s: must be %s", name, describe(s.value.Type())))
			}
		}
		if !slices.Contains(secrets, s.path) {
			continue
		}
		file, fileGiven := values[name+"_FILE"]
		switch {
		case fileGiven && given:
			errs = append(errs, fmt.Errorf("%s and %s_FILE: give one of them", name, name))
		case fileGiven:
			if err := setFromFile(s, file); err != nil {
				errs = append(errs, fmt.Errorf("%s_FILE: %w", name, err))
			}
		}
	}
	for _, s := range settings(cfg) {
		if isList(s) {
			errs = append(errs, applyListEnv(s, values)...)
		}
	}
	return errors.Join(errs...)
}

// applyListEnv sets what the environment says of single elements of a list of
// sections: TRUNKHALL_SIP_TRUNKS_0_AUTH_PASSWORD. The element after the last may be
// begun so.
func applyListEnv(s setting, values map[string]string) (errs []error) {
	for i := 0; ; i++ {
		prefix := fmt.Sprintf("%s_%d_", EnvName(s.path), i)
		begun := false
		for name := range values {
			begun = begun || strings.HasPrefix(name, prefix)
		}
		if i >= s.value.Len() {
			if !begun {
				return errs
			}
			s.value.Set(reflect.Append(s.value, reflect.Zero(s.value.Type().Elem())))
		}
		for _, leaf := range leaves(s.value.Index(i), "") {
			name := prefix + strings.TrimPrefix(EnvName(leaf.path), envPrefix)
			if text, given := values[name]; given {
				if err := setFromText(leaf.value, text); err != nil {
					errs = append(errs, fmt.Errorf("%s: must be %s", name, describe(leaf.value.Type())))
				}
			}
			if file, given := values[name+"_FILE"]; given && slices.Contains(listSecrets[s.path], leaf.path) {
				if err := setFromFile(leaf, file); err != nil {
					errs = append(errs, fmt.Errorf("%s_FILE: %w", name, err))
				}
			}
		}
	}
}

// inList reports whether a variable sets something of an element of a list.
func inList(all []setting, name string) bool {
	for _, s := range all {
		rest, ok := strings.CutPrefix(name, EnvName(s.path)+"_")
		index, rest, ok2 := strings.Cut(rest, "_")
		if !ok || !ok2 || !isList(s) || index == "" || strings.Trim(index, "0123456789") != "" {
			continue
		}
		for _, leaf := range leaves(reflect.New(s.value.Type().Elem()).Elem(), "") {
			below := strings.TrimPrefix(EnvName(leaf.path), envPrefix)
			if rest == below || rest == below+"_FILE" && slices.Contains(listSecrets[s.path], leaf.path) {
				return true
			}
		}
	}
	return false
}

// setFromText sets a setting from an environment variable: strings as they are,
// lists of strings separated by commas, all else as in YAML.
func setFromText(v reflect.Value, text string) error {
	switch {
	case v.Kind() == reflect.String:
		v.SetString(text)
		return nil
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.String:
		list := reflect.MakeSlice(v.Type(), 0, 4)
		for part := range strings.SplitSeq(text, ",") {
			if part = strings.TrimSpace(part); part != "" {
				list = reflect.Append(list, reflect.ValueOf(part).Convert(v.Type().Elem()))
			}
		}
		v.Set(list)
		return nil
	}
	fresh := reflect.New(v.Type())
	if strings.TrimSpace(text) == "" {
		return errors.New("empty")
	}
	if err := yaml.UnmarshalWithOptions([]byte(text), fresh.Interface(), yaml.Strict()); err != nil {
		return err
	}
	v.Set(fresh.Elem())
	return nil
}

// describe says in words what a setting of a type takes.
func describe(t reflect.Type) string {
	if t == reflect.TypeFor[time.Duration]() {
		return "a duration like 30s, 10m or 1h"
	}
	switch t.Kind() {
	case reflect.String:
		return "a text"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number"
	case reflect.Slice:
		return "a list"
	case reflect.Map:
		return "a section with a value for each key"
	case reflect.Float64:
		return "a number"
	}
	return "of type " + t.String()
}

func orRoot(path string) string {
	if path == "" {
		return "the file"
	}
	return path
}

func readLimited(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, maxFile)
	}
	return os.ReadFile(name)
}

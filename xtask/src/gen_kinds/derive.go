// Derives the facts of every API type from the sources of the published Go modules: names, JSON
// and protobuf tags, merge markers, defaults, enumerations, documentation, registered kinds.
// Standard library only: it parses, it does not compile, so it takes seconds.
//
// Usage: derive IMPORTPREFIX=DIR... ; prints one JSON document.
package main

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

type outField struct {
	JSON     string   `json:"json"`
	Number   int      `json:"number"`
	Inline   bool     `json:"inline"`
	Type     string   `json:"type"`
	Flags    string   `json:"flags"`
	Keys     []string `json:"keys"`
	MergeKey string   `json:"mergeKey"`
	Default  string   `json:"default"`
	Enum     []string `json:"enum"`
	GoType   string   `json:"goType"`
	Doc      string   `json:"doc"`
}

type outType struct {
	Name   string     `json:"name"`
	Flags  string     `json:"flags"`
	Gvks   []string   `json:"gvks"`
	Doc    string     `json:"doc"`
	Fields []outField `json:"fields"`
}

type outPackage struct {
	Name  string    `json:"name"`
	Types []outType `json:"types"`
}

type named struct {
	pkg  *pkg
	name string
	expr ast.Expr
	doc  []string
	imps map[string]string
}

type constant struct {
	name, typ, value string
	doc              []string
}

type pkg struct {
	path      string
	types     map[string]*named
	consts    []constant
	unmarshal map[string]bool
	files     []*ast.File
}

var roots = map[string]string{}
var packages = map[string]*pkg{}

func fatal(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "derive: "+format+"\n", args...)
	os.Exit(1)
}

func dirOf(path string) string {
	for prefix, dir := range roots {
		if path == prefix || strings.HasPrefix(path, prefix+"/") {
			return filepath.Join(dir, strings.TrimPrefix(path, prefix))
		}
	}
	return ""
}

func lines(group *ast.CommentGroup) []string {
	if group == nil {
		return nil
	}
	return strings.Split(strings.TrimRight(group.Text(), "\n"), "\n")
}

func load(path string) *pkg {
	if p, ok := packages[path]; ok {
		return p
	}
	dir := dirOf(path)
	if dir == "" {
		return nil
	}
	p := &pkg{path: path, types: map[string]*named{}, unmarshal: map[string]bool{}}
	packages[path] = p
	entries, err := os.ReadDir(dir)
	if err != nil {
		fatal("%v", err)
	}
	set := token.NewFileSet()
	for _, entry := range entries {
		name := entry.Name()
		if entry.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") ||
			strings.HasPrefix(name, "generated.") || strings.HasPrefix(name, "zz_generated") ||
			strings.HasPrefix(name, "types_swagger_doc") {
			continue
		}
		file, err := parser.ParseFile(set, filepath.Join(dir, name), nil, parser.ParseComments)
		if err != nil {
			fatal("%v", err)
		}
		p.files = append(p.files, file)
		imports := map[string]string{}
		for _, spec := range file.Imports {
			target, _ := strconv.Unquote(spec.Path.Value)
			as := filepath.Base(target)
			if spec.Name != nil {
				as = spec.Name.Name
			}
			imports[as] = target
		}
		for _, decl := range file.Decls {
			switch decl := decl.(type) {
			case *ast.FuncDecl:
				if decl.Recv != nil && decl.Name.Name == "UnmarshalJSON" {
					t := decl.Recv.List[0].Type
					if star, ok := t.(*ast.StarExpr); ok {
						t = star.X
					}
					if id, ok := t.(*ast.Ident); ok {
						p.unmarshal[id.Name] = true
					}
				}
			case *ast.GenDecl:
				declare(p, decl, imports)
			}
		}
	}
	return p
}

func declare(p *pkg, decl *ast.GenDecl, imports map[string]string) {
	for _, spec := range decl.Specs {
		switch spec := spec.(type) {
		case *ast.TypeSpec:
			doc := spec.Doc
			if doc == nil {
				doc = decl.Doc
			}
			p.types[spec.Name.Name] = &named{p, spec.Name.Name, spec.Type, lines(doc), imports}
		case *ast.ValueSpec:
			if decl.Tok != token.CONST {
				continue
			}
			doc := spec.Doc
			if doc == nil && !decl.Lparen.IsValid() {
				doc = decl.Doc
			}
			for i, name := range spec.Names {
				if i >= len(spec.Values) {
					continue
				}
				value, typ := spec.Values[i], ""
				if id, ok := spec.Type.(*ast.Ident); ok {
					typ = id.Name
				}
				if call, ok := value.(*ast.CallExpr); ok && len(call.Args) == 1 {
					if id, ok := call.Fun.(*ast.Ident); ok {
						typ, value = id.Name, call.Args[0]
					}
				}
				text := ""
				switch value := value.(type) {
				case *ast.BasicLit:
					text = value.Value
				case *ast.Ident:
					text = "=" + value.Name
				case *ast.SelectorExpr:
					if id, ok := value.X.(*ast.Ident); ok {
						text = "=" + imports[id.Name] + "#" + value.Sel.Name
					}
				}
				p.consts = append(p.consts, constant{name.Name, typ, text, lines(doc)})
			}
		}
	}
}

// constantValue gives the literal of a constant, following references.
func constantValue(p *pkg, name string) string {
	if path, rest, found := strings.Cut(name, "#"); found {
		p, name = load(path), rest
	}
	if p == nil {
		return ""
	}
	for _, c := range p.consts {
		if c.name == name {
			if strings.HasPrefix(c.value, "=") {
				return constantValue(p, c.value[1:])
			}
			return c.value
		}
	}
	return ""
}

// tags gives the values of one "+key=value" marker.
func tags(doc []string, key string) (values []string) {
	for _, line := range doc {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "+") {
			continue
		}
		k, v, _ := strings.Cut(line[1:], "=")
		if strings.TrimSpace(k) == key {
			values = append(values, v)
		}
	}
	return values
}

func tag(doc []string, key string) string {
	if v := tags(doc, key); len(v) > 0 {
		return v[0]
	}
	return ""
}

func has(doc []string, key string) bool { return len(tags(doc, key)) > 0 }

// special gives the code of types with a JSON form of their own.
var special = map[string]string{
	"k8s.io/apimachinery/pkg/apis/meta/v1.Time":       "T",
	"k8s.io/apimachinery/pkg/apis/meta/v1.MicroTime":  "U",
	"k8s.io/apimachinery/pkg/apis/meta/v1.Duration":   "D",
	"k8s.io/apimachinery/pkg/apis/meta/v1.FieldsV1":   "F",
	"k8s.io/apimachinery/pkg/api/resource.Quantity":   "Q",
	"k8s.io/apimachinery/pkg/util/intstr.IntOrString": "I",
	"k8s.io/apimachinery/pkg/runtime.RawExtension":    "R",
	"k8s.io/apimachinery/pkg/runtime.Object":          "R",
	"k8s.io/apimachinery/pkg/types.UID":               "s",
	"k8s.io/apimachinery/pkg/types.NodeName":          "s",
	"k8s.io/apimachinery/pkg/types.PatchType":         "s",
}

var builtin = map[string]string{
	"string": "s", "bool": "b", "int32": "i", "int": "l", "int64": "l", "uint32": "l",
	"float64": "d", "any": "R", "int16": "i", "uint16": "i", "uint8": "i", "uint64": "l",
}

// resolved is what a field's Go type comes to.
type resolved struct {
	code    string // as the table writes types, messages as m<full name>;
	pointer bool
	zero    string // the JSON zero of a builtin, "{}" of a plain struct
	enum    *named
	itemOf  *named // the named type of list items or map values, when it is an enumeration
	wrapped bool
	doc     []string // comments of the named types on the way
	markers []string
	struct_ *named
}

func resolve(p *pkg, imps map[string]string, expr ast.Expr) resolved {
	switch e := expr.(type) {
	case *ast.StarExpr:
		r := resolve(p, imps, e.X)
		r.pointer, r.zero = true, ""
		return r
	case *ast.ParenExpr:
		return resolve(p, imps, e.X)
	case *ast.ArrayType:
		if id, ok := e.Elt.(*ast.Ident); ok && id.Name == "byte" {
			return resolved{code: "y"}
		}
		r := resolve(p, imps, e.Elt)
		return resolved{code: "[" + r.code, itemOf: r.enum}
	case *ast.MapType:
		r := resolve(p, imps, e.Value)
		return resolved{code: "{" + r.code, itemOf: r.enum}
	case *ast.InterfaceType:
		return resolved{code: "R"}
	case *ast.StructType:
		return resolved{code: "R"}
	case *ast.Ident:
		if code, ok := builtin[e.Name]; ok && p.types[e.Name] == nil {
			zero := map[string]string{"s": `""`, "b": "false", "i": "0", "l": "0", "d": "0"}[code]
			return resolved{code: code, zero: zero}
		}
		return resolveNamed(p, e.Name)
	case *ast.SelectorExpr:
		path := imps[e.X.(*ast.Ident).Name]
		if target := load(path); target != nil {
			return resolveNamed(target, e.Sel.Name)
		}
		switch path + "." + e.Sel.Name {
		case "time.Duration":
			return resolved{code: "l", zero: "0"}
		}
		fatal("unknown type %s.%s", path, e.Sel.Name)
	}
	fatal("unknown expression %T", expr)
	return resolved{}
}

func resolveNamed(p *pkg, name string) resolved {
	full := p.path + "." + name
	if code, ok := special[full]; ok {
		zero := ""
		if code == "s" {
			zero = `""`
		}
		return resolved{code: code, zero: zero}
	}
	n := p.types[name]
	if n == nil {
		fatal("no type %s", full)
	}
	if s, ok := n.expr.(*ast.StructType); ok {
		if p.unmarshal[name] {
			return resolved{code: "R"}
		}
		zero := "{}"
		_ = s
		return resolved{code: "m" + modelName(p.path) + "." + name + ";", zero: zero, struct_: n}
	}
	r := resolve(p, n.imps, n.expr)
	r.markers = append(r.markers, n.doc...)
	if has(n.doc, "enum") && r.code == "s" {
		r.enum = n
	}
	if has(n.doc, "protobuf.nullable") {
		r.wrapped = true
	}
	return r
}

func modelName(path string) string {
	host, rest, _ := strings.Cut(path, "/")
	parts := strings.Split(host, ".")
	for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
		parts[i], parts[j] = parts[j], parts[i]
	}
	return strings.Join(parts, ".") + "." + strings.ReplaceAll(rest, "/", ".")
}

// goName prints a type as Go's reflection does.
func goName(p *pkg, imps map[string]string, expr ast.Expr) string {
	switch e := expr.(type) {
	case *ast.StarExpr:
		return "*" + goName(p, imps, e.X)
	case *ast.ArrayType:
		return "[]" + goName(p, imps, e.Elt)
	case *ast.MapType:
		return "map[" + goName(p, imps, e.Key) + "]" + goName(p, imps, e.Value)
	case *ast.Ident:
		if e.Name == "byte" {
			return "uint8"
		}
		if p.types[e.Name] == nil {
			return e.Name
		}
		return filepath.Base(p.path) + "." + e.Name
	case *ast.SelectorExpr:
		return filepath.Base(imps[e.X.(*ast.Ident).Name]) + "." + e.Sel.Name
	}
	return "interface {}"
}

type enumValue struct{ value, text string }

var spaces = regexp.MustCompile(`\s+`)

func enumValues(n *named) []enumValue {
	best := map[string]constant{}
	for _, p := range packages {
		if p != n.pkg {
			continue
		}
		for _, c := range p.consts {
			value := c.value
			if strings.HasPrefix(value, "=") {
				value = constantValue(p, value[1:])
			}
			if c.typ != n.name || !strings.HasPrefix(value, `"`) {
				continue
			}
			value, _ = strconv.Unquote(value)
			old, ok := best[value]
			a, b := strings.Join(old.doc, " "), strings.Join(c.doc, " ")
			if !ok || len(a) < len(b) || (len(a) == len(b) && a > b) {
				best[value] = c
			}
		}
	}
	var out []enumValue
	for value, c := range best {
		comment := strings.TrimSpace(strings.Join(c.doc, " "))
		comment = strings.TrimSpace(strings.TrimPrefix(comment, c.name))
		comment = spaces.ReplaceAllString(comment, " ")
		out = append(out, enumValue{value, fmt.Sprintf(" - `%q` %s", value, comment)})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].value < out[j].value })
	return out
}

// describe makes a description of a comment as OpenAPI shows it: markers and notes to developers
// left out, lines joined into paragraphs, indented lines kept as lines.
func describe(doc []string) string {
	text := ""
	chop := func() {
		if len(text) > 0 {
			text = text[:len(text)-1]
		}
	}
	for _, line := range doc {
		if line == "---" {
			break
		}
		line = strings.TrimRight(line, " ")
		leading := strings.TrimLeft(line, " ")
		switch {
		case line == "":
			chop()
			text += "\n\n"
		case strings.HasPrefix(leading, "TODO"), strings.HasPrefix(leading, "+"):
		case strings.HasPrefix(line, " "), strings.HasPrefix(line, "\t"):
			chop()
			text += "\n" + line + "\n"
		default:
			text += line + " "
		}
	}
	return strings.TrimSpace(text)
}

func field(p *pkg, n *named, f *ast.Field) (out []outField) {
	var st reflect.StructTag
	if f.Tag != nil {
		text, _ := strconv.Unquote(f.Tag.Value)
		st = reflect.StructTag(text)
	}
	doc := lines(f.Doc)
	parts := strings.Split(st.Get("json"), ",")
	name, options := parts[0], parts[1:]
	option := func(want string) bool {
		for _, o := range options {
			if o == want {
				return true
			}
		}
		return false
	}
	number := 0
	if proto := strings.Split(st.Get("protobuf"), ","); len(proto) > 1 {
		number, _ = strconv.Atoi(proto[1])
	}
	if name == "-" || has(doc, "k8s:openapi-gen") && tag(doc, "k8s:openapi-gen") == "false" {
		return nil
	}
	r := resolve(p, n.imps, f.Type)
	if name == "" {
		if len(f.Names) == 0 || option("inline") {
			if r.struct_ == nil {
				return nil
			}
			return []outField{{Inline: true, Number: number, Type: r.code}}
		}
		if f.Tag == nil {
			return nil
		}
		name = f.Names[0].Name
	}
	o := outField{JSON: name, Number: number, Type: r.code}
	omit := option("omitempty")
	switch {
	case has(doc, "required"):
		o.Flags += "r"
	case has(doc, "optional"):
	case !omit:
		o.Flags += "r"
	}
	if r.pointer {
		o.Flags += "p"
	}
	if omit {
		o.Flags += "o"
	}
	if option("omitzero") {
		o.Flags += "z"
	}
	proto := st.Get("protobuf")
	if r.wrapped && strings.HasPrefix(r.code, "[") && !strings.Contains(proto, ",rep") {
		o.Flags += "w"
	}
	marker := func(key string) string {
		if v := tag(doc, key); v != "" {
			return v
		}
		return tag(r.markers, key)
	}
	switch marker("listType") {
	case "map":
		o.Flags += "M"
	case "set":
		o.Flags += "S"
	case "atomic":
		// Told apart from a list without a marker, which OpenAPI shows without one.
		o.Flags += "A"
	}
	o.Keys = tags(doc, "listMapKey")
	if marker("mapType") == "atomic" || tag(doc, "structType") == "atomic" {
		o.Flags += "a"
	}
	if marker("mapType") == "granular" || tag(doc, "structType") == "granular" {
		o.Flags += "g"
	}
	for _, strategy := range strings.Split(st.Get("patchStrategy"), ",") {
		switch strategy {
		case "merge":
			o.Flags += "m"
		case "retainKeys":
			o.Flags += "k"
		case "replace":
			o.Flags += "R"
		}
	}
	o.MergeKey = st.Get("patchMergeKey")

	def := tag(doc, "default")
	if def == "" {
		def = tag(r.markers, "default")
	}
	if strings.HasPrefix(def, "ref(") {
		ref := strings.TrimSuffix(strings.TrimPrefix(def, "ref("), ")")
		if at := strings.LastIndex(ref, "."); at >= 0 {
			ref = ref[:at] + "#" + ref[at+1:]
		}
		def = constantValue(p, ref)
		if def == "" {
			fatal("default of %s.%s is unknown: %s", n.name, name, ref)
		}
	}
	if r.zero != "" && def == "" && (r.zero == "{}" || !omit) {
		def = r.zero
	}
	if def != "" && !json.Valid([]byte(def)) {
		fatal("default of %s.%s is no JSON: %s", n.name, name, def)
	}
	o.Default = def

	full := doc
	if r.enum != nil {
		values := enumValues(r.enum)
		if len(values) > 0 {
			full = append(append([]string{}, doc...), "", "Possible enum values:")
			texts := []string{}
			for _, v := range values {
				o.Enum = append(o.Enum, v.value)
				texts = append(texts, v.text)
			}
			sort.Strings(texts)
			full = append(full, texts...)
		}
	} else if r.itemOf != nil {
		for _, v := range enumValues(r.itemOf) {
			o.Enum = append(o.Enum, v.value)
		}
	}
	o.Doc = describe(full)
	o.GoType = strings.TrimLeft(goName(p, n.imps, f.Type), "*")
	return []outField{o}
}

// groupVersion reads the registration of a package.
func groupVersion(p *pkg) (group, version string, known []string, ok bool) {
	for _, file := range p.files {
		ast.Inspect(file, func(node ast.Node) bool {
			switch node := node.(type) {
			case *ast.ValueSpec:
				if node.Names[0].Name != "SchemeGroupVersion" || len(node.Values) != 1 {
					return true
				}
				lit, isLit := node.Values[0].(*ast.CompositeLit)
				if !isLit {
					return true
				}
				ok = true
				for _, element := range lit.Elts {
					kv := element.(*ast.KeyValueExpr)
					value := ""
					switch v := kv.Value.(type) {
					case *ast.BasicLit:
						value, _ = strconv.Unquote(v.Value)
					case *ast.Ident:
						value, _ = strconv.Unquote(constantValue(p, v.Name))
					case *ast.SelectorExpr:
						for _, f := range p.files {
							for _, spec := range f.Imports {
								target, _ := strconv.Unquote(spec.Path.Value)
								if filepath.Base(target) == v.X.(*ast.Ident).Name || spec.Name != nil && spec.Name.Name == v.X.(*ast.Ident).Name {
									value, _ = strconv.Unquote(constantValue(load(target), v.Sel.Name))
								}
							}
						}
					}
					if kv.Key.(*ast.Ident).Name == "Group" {
						group = value
					} else {
						version = value
					}
				}
			case *ast.CallExpr:
				fun, isSel := node.Fun.(*ast.SelectorExpr)
				if !isSel || fun.Sel.Name != "AddKnownTypes" {
					return true
				}
				for _, arg := range node.Args[1:] {
					if unary, isUnary := arg.(*ast.UnaryExpr); isUnary {
						if lit, isLit := unary.X.(*ast.CompositeLit); isLit {
							if id, isID := lit.Type.(*ast.Ident); isID {
								known = append(known, id.Name)
							}
						}
					}
				}
			}
			return true
		})
	}
	return group, version, known, ok
}

const metaPath = "k8s.io/apimachinery/pkg/apis/meta/v1"

func main() {
	for _, arg := range os.Args[1:] {
		prefix, dir, _ := strings.Cut(arg, "=")
		roots[prefix] = dir
	}
	paths := []string{metaPath}
	for prefix, dir := range roots {
		if prefix == "k8s.io/apimachinery" {
			continue
		}
		err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.Name() == "types.go" {
				rel, _ := filepath.Rel(dir, filepath.Dir(path))
				if strings.Contains(path, "/apis/") && !strings.HasPrefix(filepath.Base(filepath.Dir(path)), "v") {
					return nil // the internal version of an API
				}
				if strings.HasPrefix(rel, "examples") || strings.Contains(rel, "/testing") {
					return nil
				}
				if prefix != "k8s.io/api" && !strings.Contains(rel, "/apis/") && !strings.HasPrefix(rel, "pkg/apis/") {
					return nil
				}
				paths = append(paths, prefix+"/"+filepath.ToSlash(rel))
			}
			return err
		})
		if err != nil {
			fatal("%v", err)
		}
	}
	// Types with a JSON form of their own stand in the table for their documentation.
	for full := range special {
		if path := full[:strings.LastIndex(full, ".")]; path != metaPath && path != "k8s.io/apimachinery/pkg/types" {
			paths = append(paths, path)
		}
	}
	sort.Strings(paths)

	// Kinds that every group version serves, and those of v1 alone.
	everywhere := []string{"WatchEvent", "ListOptions", "GetOptions", "DeleteOptions", "CreateOptions", "UpdateOptions", "PatchOptions"}
	meta := map[string][]string{}
	for _, kind := range []string{"Status", "APIVersions", "APIGroup", "APIGroupList", "APIResourceList"} {
		meta[kind] = append(meta[kind], "/v1/"+kind)
	}
	for _, kind := range []string{"Table", "TableOptions", "PartialObjectMetadata", "PartialObjectMetadataList"} {
		meta[kind] = append(meta[kind], "meta.k8s.io/v1/"+kind)
	}

	gvks := map[string][]string{}
	for _, path := range paths {
		p := load(path)
		group, version, known, ok := groupVersion(p)
		if !ok || path == metaPath {
			continue
		}
		for _, kind := range known {
			// A kind may be another package's struct under a new name (core's List).
			target := path + "." + kind
			if n := p.types[kind]; n != nil {
				if sel, isSel := n.expr.(*ast.SelectorExpr); isSel {
					if from := n.imps[sel.X.(*ast.Ident).Name]; from == metaPath {
						meta[sel.Sel.Name] = append(meta[sel.Sel.Name], group+"/"+version+"/"+kind)
						continue
					}
				}
			}
			gvks[target] = append(gvks[target], group+"/"+version+"/"+kind)
		}
		for _, kind := range everywhere {
			meta[kind] = append(meta[kind], group+"/"+version+"/"+kind)
		}
	}
	for kind, list := range meta {
		sort.Strings(list)
		gvks[metaPath+"."+kind] = list
	}

	var out []outPackage
	seen := map[string]bool{}
	for _, path := range paths {
		if seen[path] {
			continue
		}
		seen[path] = true
		p := load(path)
		op := outPackage{Name: modelName(path)}
		names := []string{}
		for name := range p.types {
			names = append(names, name)
		}
		sort.Strings(names)
		for _, name := range names {
			n := p.types[name]
			s, ok := n.expr.(*ast.StructType)
			if !ok || !ast.IsExported(name) {
				continue
			}
			code := special[path+"."+name]
			if code != "" || p.unmarshal[name] && strings.Contains(path, "/apiextensions/") {
				op.Types = append(op.Types, outType{Name: modelName(path) + "." + name, Doc: describe(n.doc)})
				continue
			}
			if p.unmarshal[name] || path != metaPath && strings.HasPrefix(path, "k8s.io/apimachinery/") {
				continue
			}
			t := outType{Name: modelName(path) + "." + name, Gvks: gvks[path+"."+name], Doc: describe(n.doc)}
			if tag(n.doc, "structType") == "atomic" || tag(n.doc, "mapType") == "atomic" {
				t.Flags += "a"
			}
			for _, f := range s.Fields.List {
				t.Fields = append(t.Fields, field(p, n, f)...)
			}
			op.Types = append(op.Types, t)
		}
		if len(op.Types) > 0 {
			out = append(out, op)
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		fatal("%v", err)
	}
}

package migrations

import (
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

// The rules of docs/migrations.md, as far as the text of a statement shows
// whether it follows them. A statement that matches none of these is refused.
// An author who needs one considers whether it is safe, and then either adds it
// here or marks the migration as breaking.
var (
	breakingHeader = regexp.MustCompile(`(?m)^-- switchyard: breaking (\d+)$`)
	minSchema      = regexp.MustCompile(`(?i)^UPDATE meta SET min_schema = (\d+)$`)
	createTable    = regexp.MustCompile(`(?i)^CREATE TABLE (?:IF NOT EXISTS )?(\w+)`)
	createIndex    = regexp.MustCompile(`(?i)^CREATE (UNIQUE )?INDEX (CONCURRENTLY )?(?:IF NOT EXISTS )?\w+ ON (\w+)`)
	alterTable     = regexp.MustCompile(`(?i)^ALTER TABLE (?:IF EXISTS )?(?:ONLY )?(\w+) (.*)$`)
	addColumn      = regexp.MustCompile(`(?i)^ADD COLUMN (?:IF NOT EXISTS )?\w+ (.*)$`)
	changeRows     = regexp.MustCompile(`(?i)^(?:INSERT INTO|UPDATE) (\w+)\b`)
	comment        = regexp.MustCompile(`(?i)^COMMENT ON `)
	references     = regexp.MustCompile(`(?i)\bREFERENCES (\w+)`)
	constraint     = regexp.MustCompile(`(?i)\b(CHECK|UNIQUE|REFERENCES|PRIMARY KEY|GENERATED|EXCLUDE|COLLATE)\b`)
	notNull        = regexp.MustCompile(`(?i)\bNOT NULL\b`)
	defaultValue   = regexp.MustCompile(`(?i)\bDEFAULT ([^ ]+)`)
)

// problems returns the reasons to refuse a migration, one line for each.
func problems(dialect string, version int64, text string) (found []string) {
	up, _, _ := strings.Cut(text, "-- +goose Down")
	statements := splitStatements(up)
	minBinary, isBreaking := int64(0), false
	if m := breakingHeader.FindStringSubmatch(text); m != nil {
		minBinary, _ = strconv.ParseInt(m[1], 10, 64)
		isBreaking = true
		if minBinary > version || minBinary < 2 {
			found = append(found, fmt.Sprintf("it cannot break binaries below %d: only 2 to %d make sense", minBinary, version))
		}
	}
	recorded := false
	file := migrationFile{dialect: dialect, noTransaction: strings.Contains(text, "-- +goose NO TRANSACTION"), singleStatement: len(statements) == 1}
	for _, s := range statements {
		if m := minSchema.FindStringSubmatch(s); m != nil {
			recorded = true
			if m[1] != fmt.Sprint(minBinary) {
				found = append(found, s+": the header says otherwise")
			}
			continue
		}
		if problem := file.problem(s); problem != "" && !isBreaking {
			found = append(found, s+": "+problem)
		}
	}
	if isBreaking && !recorded {
		found = append(found, fmt.Sprintf("older binaries cannot notice it: UPDATE meta SET min_schema = %d is missing", minBinary))
	}
	return found
}

// A migrationFile is a migration whose statements are checked in order.
type migrationFile struct {
	dialect         string
	noTransaction   bool
	singleStatement bool
	createdTables   []string // by the statements so far
}

// problem returns why a statement may not be in an additive migration, "" if it
// may.
func (f *migrationFile) problem(s string) string {
	if m := createTable.FindStringSubmatch(s); m != nil {
		f.createdTables = append(f.createdTables, strings.ToLower(m[1]))
		for _, r := range references.FindAllStringSubmatch(s, -1) {
			if !f.owns(r[1]) {
				return "a foreign key forbids older binaries to delete from " + r[1]
			}
		}
		return ""
	}
	if m := createIndex.FindStringSubmatch(s); m != nil {
		return f.indexProblem(m[1] != "", m[2] != "", m[3])
	}
	if m := alterTable.FindStringSubmatch(s); m != nil {
		if f.owns(m[1]) {
			return ""
		}
		for _, action := range splitTopLevel(m[2], ',') {
			if problem := columnProblem(action); problem != "" {
				return problem
			}
		}
		return ""
	}
	if m := changeRows.FindStringSubmatch(s); m != nil {
		if f.owns(m[1]) {
			return ""
		}
		return "it changes rows of a table that older binaries use"
	}
	if comment.MatchString(s) {
		return ""
	}
	return "it is none of the statements that only add"
}

// owns reports whether the migration has created the table, so that no older
// binary uses it.
func (f *migrationFile) owns(table string) bool {
	return slices.Contains(f.createdTables, strings.ToLower(table))
}

// indexProblem returns why the migration may not create an index, "" if it may.
func (f *migrationFile) indexProblem(unique, concurrently bool, table string) string {
	switch {
	case f.owns(table):
		return ""
	case unique:
		return "it forbids rows that older binaries write"
	case f.dialect != "postgres":
		return ""
	case !concurrently:
		return "it locks " + table + " while it builds: CONCURRENTLY"
	case !f.noTransaction || !f.singleStatement:
		return "CONCURRENTLY needs a file of its own, marked -- +goose NO TRANSACTION"
	}
	return ""
}

// columnProblem returns why an action of ALTER TABLE is not allowed, "" if it is.
func columnProblem(action string) string {
	m := addColumn.FindStringSubmatch(action)
	if m == nil {
		return "it does more than ADD COLUMN"
	}
	value := defaultValue.FindStringSubmatch(m[1])
	switch {
	case constraint.MatchString(m[1]):
		return "it constrains what older binaries may write"
	case notNull.MatchString(m[1]) && value == nil:
		return "older binaries do not fill it: a DEFAULT is missing"
	case value != nil && strings.Contains(value[1], "("):
		return "a default that is computed rewrites the table under a lock"
	}
	return ""
}

// splitStatements returns the statements of SQL text without comments, each on one line.
func splitStatements(text string) (statements []string) {
	var b strings.Builder
	for rest := text; rest != ""; {
		switch {
		case strings.HasPrefix(rest, "--"):
			_, rest, _ = strings.Cut(rest, "\n")
			b.WriteByte(' ')
		case rest[0] == '\'':
			end := strings.IndexByte(rest[1:], '\'') + 2
			b.WriteString(rest[:end])
			rest = rest[end:]
		default:
			b.WriteByte(rest[0])
			rest = rest[1:]
		}
	}
	for _, s := range splitTopLevel(b.String(), ';') {
		if s = strings.Join(strings.FieldsFunc(s, unicode.IsSpace), " "); s != "" {
			statements = append(statements, s)
		}
	}
	return statements
}

// splitTopLevel splits at the separators outside of quotes and parentheses.
func splitTopLevel(s string, separator byte) (parts []string) {
	depth, quoted, from := 0, false, 0
	for i := range len(s) {
		switch c := s[i]; {
		case c == '\'':
			quoted = !quoted
		case quoted:
		case c == '(':
			depth++
		case c == ')':
			depth--
		case c == separator && depth == 0:
			parts = append(parts, strings.TrimSpace(s[from:i]))
			from = i + 1
		}
	}
	return append(parts, strings.TrimSpace(s[from:]))
}

// The testdata of the store's tests has the migrations of a future release. They
// show what the rules allow, and those tests run this release on them.
func TestMigrationsOnlyAdd(t *testing.T) {
	for name, from := range map[string]fs.FS{
		"here": FS, "later": os.DirFS("../internal/store/testdata/later"), "breaking": os.DirFS("../internal/store/testdata/breaking"),
	} {
		for _, dialect := range []string{"postgres", "sqlite"} {
			files, err := fs.Glob(from, dialect+"/*.sql")
			if err != nil || len(files) == 0 {
				t.Fatalf("%s %s: %d files, %v", name, dialect, len(files), err)
			}
			for _, path := range files {
				text, err := fs.ReadFile(from, path)
				if err != nil {
					t.Fatal(err)
				}
				for _, problem := range problems(dialect, versionOf(t, path), string(text)) {
					t.Errorf("%s: %s (docs/migrations.md has the rules)", path, problem)
				}
			}
		}
	}
}

// A binary was built for one schema version, which is the same number on both
// dialects.
func TestDialectsHaveTheSameVersions(t *testing.T) {
	var versions [2][]int64
	for i, dialect := range []string{"postgres", "sqlite"} {
		files, err := fs.Glob(FS, dialect+"/*.sql")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			versions[i] = append(versions[i], versionOf(t, path))
		}
	}
	if !slices.Equal(versions[0], versions[1]) {
		t.Errorf("PostgreSQL has %v, SQLite %v", versions[0], versions[1])
	}
	for i, v := range versions[0] {
		if v != int64(i+1) {
			t.Errorf("number %d has version %d", i+1, v)
		}
	}
}

func versionOf(t *testing.T, path string) int64 {
	t.Helper()
	_, name, _ := strings.Cut(path, "/")
	number, _, _ := strings.Cut(name, "_")
	v, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return v
}

func TestRulesRefuseUnsafeStatements(t *testing.T) {
	for text, want := range map[string]string{
		"CREATE TABLE x (a int PRIMARY KEY, b text UNIQUE CHECK (b <> ';'))":          "",
		"CREATE TABLE x (a int); ALTER TABLE x ADD CHECK (a > 0); INSERT INTO x (1)":  "",
		"CREATE TABLE x (a int); CREATE UNIQUE INDEX i ON x (a); UPDATE x SET a = 1":  "",
		"CREATE TABLE x (a int REFERENCES rooms)":                                     "foreign key",
		"CREATE TABLE x (a int); CREATE TABLE y (a int REFERENCES x)":                 "",
		"ALTER TABLE rooms ADD COLUMN a text":                                         "",
		"ALTER TABLE rooms ADD COLUMN a text, ADD COLUMN b numeric(3, 2) DEFAULT 0.5": "",
		"ALTER TABLE rooms ADD COLUMN a text NOT NULL DEFAULT 'a;b, (c)'":             "",
		"ALTER TABLE rooms ADD COLUMN a text NOT NULL DEFAULT 'a;b'":                  "",
		"alter table rooms\n  add column a text -- NOT NULL\n":                        "",
		"ALTER TABLE rooms ADD COLUMN a text NOT NULL":                                "DEFAULT is missing",
		"ALTER TABLE rooms ADD COLUMN a uuid DEFAULT gen_random_uuid()":               "rewrites",
		"ALTER TABLE rooms ADD COLUMN a text UNIQUE":                                  "constrains",
		"ALTER TABLE rooms ADD COLUMN a int CHECK (a > 0)":                            "constrains",
		"ALTER TABLE rooms ADD COLUMN a int REFERENCES messages":                      "constrains",
		"ALTER TABLE rooms ADD COLUMN a text, DROP COLUMN head":                       "more than ADD COLUMN",
		"ALTER TABLE rooms ADD CONSTRAINT c CHECK (head > 0)":                         "more than ADD COLUMN",
		"ALTER TABLE rooms ADD CHECK (head > 0)":                                      "more than ADD COLUMN",
		"ALTER TABLE rooms RENAME COLUMN head TO top":                                 "more than ADD COLUMN",
		"ALTER TABLE rooms RENAME TO room":                                            "more than ADD COLUMN",
		"ALTER TABLE rooms ALTER COLUMN head TYPE numeric":                            "more than ADD COLUMN",
		"ALTER TABLE rooms ALTER COLUMN head SET NOT NULL":                            "more than ADD COLUMN",
		"ALTER TABLE rooms ALTER COLUMN head DROP DEFAULT":                            "more than ADD COLUMN",
		"DROP TABLE rooms":          "only add",
		"DROP INDEX message_ids_at": "only add",
		"TRUNCATE commits":          "only add",
		"DELETE FROM rooms":         "only add",
		"CREATE TRIGGER t BEFORE INSERT ON rooms EXECUTE FUNCTION f()":                             "only add",
		"UPDATE rooms SET head = 0":                                                                "changes rows",
		"INSERT INTO rooms (name) VALUES ('x')":                                                    "changes rows",
		"CREATE UNIQUE INDEX i ON rooms (head)":                                                    "forbids rows",
		"CREATE INDEX i ON rooms (head)":                                                           "CONCURRENTLY",
		"CREATE INDEX CONCURRENTLY i ON rooms (head)":                                              "file of its own",
		"-- +goose NO TRANSACTION\nCREATE INDEX CONCURRENTLY i ON rooms (head)":                    "",
		"-- +goose NO TRANSACTION\nCREATE TABLE x (); CREATE INDEX CONCURRENTLY i ON rooms (head)": "file of its own",
		"UPDATE meta SET min_schema = 5":                                                           "header says otherwise",
		"-- switchyard: breaking 5\nDROP TABLE rooms":                                              "cannot notice it",
		"-- switchyard: breaking 5\nDROP TABLE rooms; UPDATE meta SET min_schema = 4":              "header says otherwise",
		"-- switchyard: breaking 5\nDROP TABLE rooms; UPDATE meta SET min_schema = 5":              "",
		"-- switchyard: breaking 8\nDROP TABLE rooms; UPDATE meta SET min_schema = 8":              "cannot break binaries below 8",
		"-- switchyard: breaking 1\nDROP TABLE rooms; UPDATE meta SET min_schema = 1":              "cannot break binaries below 1",
		"CREATE TABLE x (); -- +goose Down\nDROP TABLE x":                                          "",
		"COMMENT ON TABLE rooms IS 'x'":                                                            "",
	} {
		got := strings.Join(problems("postgres", 7, "-- +goose Up\n"+text), "\n")
		if (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s\n\tgot %q, want %q", text, got, want)
		}
	}
	if got := problems("sqlite", 7, "CREATE INDEX i ON rooms (head)"); got != nil {
		t.Errorf("an index on SQLite, which has no CONCURRENTLY: %q", got)
	}
}

package store

import (
	"regexp"
	"strings"
	"testing"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// asRole returns the fixture for the role app, which does not own the tables. Roles
// belong to the server, so each test has one of its own.
func asRole(t *testing.T, prepare ...string) *fixture {
	t.Helper()
	pg := testkit.Postgres(t)
	role := "app_" + pg.Database()
	pg.Exec("CREATE ROLE " + role + " LOGIN")
	t.Cleanup(func() { pg.Exec("DROP OWNED BY "+role, "DROP ROLE "+role) })
	for _, sql := range prepare {
		pg.Exec(strings.NewReplacer("$role", role, "$database", pg.Database()).Replace(sql))
	}
	return &fixture{t: t, pg: pg, url: strings.Replace(pg.URL(), "postgres@", role+"@", 1), maxNodes: 2}
}

// The database's administrator creates the tables, and the service gets its own
// role. grants are all that docs/postgres.md lists for it.
var grants = []string{
	"GRANT CONNECT ON DATABASE $database TO $role",
	"GRANT USAGE ON SCHEMA public TO $role",
	"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO $role",
}

func TestTheDocumentedRightsAreEnough(t *testing.T) {
	t.Parallel()
	page := string(testkit.ReadFile(t, "../../docs/postgres.md"))
	for _, sql := range grants {
		if documented := strings.NewReplacer("$database", "chat", "$role", "app").Replace(sql); !strings.Contains(page, documented) {
			t.Errorf("docs/postgres.md lacks: %s", documented)
		}
	}
	f := asRole(t)
	(&fixture{t: t, pg: f.pg, url: f.pg.URL()}).migrate()
	f.pg.Exec("REVOKE ALL ON DATABASE "+f.pg.Database()+" FROM PUBLIC", "REVOKE ALL ON SCHEMA public FROM PUBLIC")
	for _, sql := range grants {
		f.pg.Exec(strings.NewReplacer("$role", "app_"+f.pg.Database(), "$database", f.pg.Database()).Replace(sql))
	}
	f.migrate() // nothing is to be done
	n := f.startNode(func(c *Config) { c.RetentionCount = 1 })
	n.mustPublish("room", "1", "x")
	n.mustPublish("room", "2", "x")
	for what, err := range map[string]error{"prune": n.prune(t.Context()), "retention": n.retention().runOnce(t.Context())} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestARoleThatMayCreateNeedsNoOther(t *testing.T) {
	t.Parallel()
	f := asRole(t, "CREATE SCHEMA app AUTHORIZATION $role", "ALTER ROLE $role IN DATABASE $database SET search_path = app")
	f.migrate()
	f.startNode().mustPublish("room", "1", "x")
}

// Each refusal is one line, and names the statement that helps. The test runs it.
func TestMissingRightsAreNamedWithTheirGrant(t *testing.T) {
	t.Parallel()
	remedy := regexp.MustCompile(`: run (.*?)(, or .*| as a superuser)?$`)
	for name, c := range map[string]struct {
		migrated bool // by the administrator, with all grants
		prepare  []string
		says     string
	}{
		"no CONNECT":                   {true, []string{"REVOKE CONNECT ON DATABASE $database FROM PUBLIC, $role"}, "GRANT CONNECT ON DATABASE"},
		"no login":                     {true, []string{"ALTER ROLE $role NOLOGIN"}, "LOGIN"},
		"no USAGE":                     {true, []string{"REVOKE USAGE ON SCHEMA public FROM PUBLIC, $role"}, "GRANT USAGE ON SCHEMA"},
		"no CREATE":                    {false, []string{"REVOKE CREATE ON SCHEMA public FROM PUBLIC, $role"}, "GRANT CREATE ON SCHEMA"},
		"a search_path without schema": {false, []string{"ALTER ROLE $role IN DATABASE $database SET search_path = missing"}, "CREATE SCHEMA"},
		"a schema without USAGE first": {true, []string{"CREATE SCHEMA app", "ALTER ROLE $role IN DATABASE $database SET search_path = app, public"}, "GRANT USAGE ON SCHEMA"},
		"no SELECT":                    {true, []string{"REVOKE SELECT ON goose_db_version FROM $role"}, "GRANT SELECT"},
		"no INSERT":                    {true, []string{"REVOKE INSERT ON messages FROM $role"}, "no right INSERT"},
		"no UPDATE":                    {true, []string{"REVOKE UPDATE ON meta FROM $role"}, "no right UPDATE"},
		"no DELETE":                    {true, []string{"REVOKE DELETE ON commits FROM $role"}, "no right DELETE"},
		"pg_control_system revoked":    {true, []string{"REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC"}, "GRANT EXECUTE ON FUNCTION pg_control_system()"},
		"row-level security":           {true, []string{"ALTER TABLE messages ENABLE ROW LEVEL SECURITY"}, "DISABLE ROW LEVEL SECURITY"},
		"a read-only role":             {true, []string{"ALTER ROLE $role SET default_transaction_read_only = on"}, "RESET default_transaction_read_only"},
		"a read-only database":         {true, []string{"ALTER DATABASE $database SET default_transaction_read_only = on"}, "ALTER DATABASE"},
		"read-only in the database":    {true, []string{"ALTER ROLE $role IN DATABASE $database SET default_transaction_read_only = on"}, "IN DATABASE"},
		"tables of another role": {true, []string{"DELETE FROM goose_db_version WHERE version_id = (SELECT max(version_id) FROM goose_db_version)",
			"GRANT CREATE ON SCHEMA public TO $role"}, "may not migrate them"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := asRole(t)
			fill := strings.NewReplacer("$role", "app_"+f.pg.Database(), "$database", f.pg.Database())
			if c.migrated {
				(&fixture{t: t, pg: f.pg, url: f.pg.URL()}).migrate()
				for _, sql := range grants {
					f.pg.Exec(fill.Replace(sql))
				}
			} else {
				f.pg.Exec(fill.Replace("GRANT CREATE ON SCHEMA public TO $role"))
			}
			for _, sql := range c.prepare {
				f.pg.Exec(fill.Replace(sql))
			}
			err := Migrate(t.Context(), f.url)
			if err == nil || !strings.Contains(err.Error(), c.says) || !strings.HasPrefix(err.Error(), "DATABASE_URL") || strings.Contains(err.Error(), "\n") {
				t.Fatalf("migrate: %v, want %q", err, c.says)
			}
			if c.migrated && name != "tables of another role" {
				if _, again := f.openLog(); again == nil || again.Error() != err.Error() {
					t.Errorf("open: %v", again)
				}
			}
			if name == "tables of another role" {
				return // its owner here is a superuser, whom the test does not grant to a role
			}
			for range 2 { // a schema may need USAGE and then CREATE
				statement := remedy.FindStringSubmatch(err.Error())
				if statement == nil {
					t.Fatalf("no statement in %v", err)
				}
				f.pg.Exec("SET transaction_read_only = off; " + statement[1])
				if err = Migrate(t.Context(), f.url); err == nil {
					break
				}
			}
			if err != nil {
				t.Fatalf("after what the refusal says: %v", err)
			}
			f.startNode().mustPublish("room", "1", "x")
		})
	}
}

func TestADatabaseThatDoesNotExistIsNamed(t *testing.T) {
	t.Parallel()
	err := Migrate(t.Context(), testkit.Postgres(t).URLOf("nowhere"))
	if err == nil || !strings.Contains(err.Error(), `run CREATE DATABASE "nowhere" OWNER "postgres"`) {
		t.Errorf("%v", err)
	}
}

// Each table has a row in the list of rights.
func TestTheListOfRightsHasEveryTable(t *testing.T) {
	t.Parallel()
	f := newPostgresFixture(t, testkit.Postgres(t))
	for table := range strings.SplitSeq(f.pg.Query("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"), "\n") {
		if tableRights[table] == nil {
			t.Errorf("tableRights lacks %s", table)
		}
	}
}

// Names and data are stored as bytes, whatever the database was created with.
func TestDatabasesOfOtherEncodingsHoldTheSame(t *testing.T) {
	t.Parallel()
	for _, with := range []string{
		"ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C'",
		"ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C'",
		"ENCODING 'UTF8' LOCALE_PROVIDER libc LOCALE 'C'",
		"ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'und-u-ks-level2' LOCALE 'C'",
	} {
		t.Run(with, func(t *testing.T) {
			t.Parallel()
			pg := testkit.Postgres(t)
			name := pg.Database() + "_other"
			pg.Exec("CREATE DATABASE " + name + " TEMPLATE template0 " + with)
			t.Cleanup(func() { pg.Exec("DROP DATABASE " + name + " WITH (FORCE)") })
			f := &fixture{t: t, pg: pg, url: pg.URLOf(name), maxNodes: 2}
			f.migrate()
			n := f.startNode()
			for i, user := range []string{"Zoë", "zoë", "Łukasz", "李", "😀"} {
				if p := n.publish("room", user, "id", user+"\x00\xff"); p.Err != nil || p.Seq != message.Seq(i+1) || p.Duplicate {
					t.Errorf("%s: %+v", user, p)
				}
			}
			for i, m := range n.readAll("room") {
				if want := m.From + "\x00\xff"; string(m.Data) != want {
					t.Errorf("message %d of %s is %q", i, m.From, m.Data)
				}
			}
			if p := n.publish("room", "李", "id", "李\x00\xff"); p.Err != nil || !p.Duplicate {
				t.Errorf("a resend: %+v", p)
			}
		})
	}
}

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

// A backend asks one node to ban a user: every node closes the user's connections,
// and admits none until the ban ends.
func TestABannedUserIsDisconnectedFromEveryNode(t *testing.T) {
	t.Parallel()
	env := map[string]string{
		"DATABASE_URL": testkit.Postgres(t).URL(), "REDIS_URL": testkit.StartRedis(t).URL(),
		"AUTH_JWT_SECRET": signingSecret, "API_KEYS": "shop:" + shopKey,
	}
	near, far := &attackTarget{Server: testkit.StartServer(t, env)}, &attackTarget{Server: testkit.StartServer(t, env)}
	got := far.runAttack(t.Context(), attack{try: func(a *attacker) string {
		mallory, ada := a.connectWithToken(tokenOf("mallory", nil)), a.connectWithToken(tokenOf("ada", nil))
		removed := near.runAttack(a.ctx, attack{try: func(a *attacker) string {
			return a.roundTrip(request("POST /v1/users/mallory/disconnect", `{"for":"10m"}`, "Authorization: Bearer "+shopKey))
		}})
		began := time.Now()
		_, end := mallory.readUntil(func(*receivedFrame) bool { return false })
		if took := time.Since(began); took > 10*time.Second {
			end += fmt.Sprint(" after ", took)
		}
		return fmt.Sprint(removed, ", ", end, ", ", a.tryToken(tokenOf("mallory", nil)), ", ada ", ada.stillWorks())
	}})
	// 202: the shared state was slow to answer. The other nodes learn of the ban all the same.
	got = strings.Replace(got, "202, ", "200, ", 1)
	if want := "200, close 4003, close 4003, 403 forbidden, ada still works"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

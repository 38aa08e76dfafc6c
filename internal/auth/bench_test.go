package auth

import (
	"context"
	"strings"
	"testing"

	"switchyard/internal/message"
)

// BenchmarkVerify measures a handshake's token by kind of key, and a stranger's bad
// token.
func BenchmarkVerify(b *testing.B) {
	w := openWithAllKeys(b)
	jwks := openVerifier(b, newIssuer(jwk(rsaKey(), jsonObject{"kid": "r"}), jwk(ecKey(), jsonObject{"kid": "e"})).inMemory())
	for _, bb := range []struct {
		name  string
		by    *testVerifier
		token string
		good  bool
	}{
		{"HS256", w, sign(secret, nil), true},
		{"RS256", w, sign(rsaKey(), nil), true},
		{"ES256", w, sign(ecKey(), nil), true},
		{"EdDSA", w, sign(edKey(), nil), true},
		{"JWKS", jwks, signWithKID("r", rsaKey()), true},
		{"256 rooms", w, sign(secret, jsonObject{"rooms": manyRooms(256)}), true},
		{"8 KiB of dots", w, strings.Repeat(".", maxToken), false},
		{"8 KiB of names", w, signRaw(`{"alg":"HS256"`+strings.Repeat(`,"`, 1)+strings.Repeat("x", 5000)+`":1}`, `{}`, "other"), false},
		{"a stranger's", w, sign(rsaOther(), nil), false},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := bb.by.Verify(context.Background(), bb.token); (err == nil) != bb.good {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkMay measures the check of each publish. The last case is the worst
// within the bounds.
func BenchmarkMay(b *testing.B) {
	worst := strings.TrimSuffix(strings.Repeat(strings.Repeat("a*", 7)+strings.Repeat("a", 100)+"X:r,", 1), ",")
	var many []string
	for i := range maxPatterns {
		many = append(many, strings.Replace(worst, "X", string(alphabet[i%62])+string(alphabet[i/62%62]), 1))
	}
	for _, bb := range []struct{ name, patterns, room string }{
		{"exact", "news:r,orders.7:rw,lobby:r", "orders.7"},
		{"prefix", "news:r,orders.*:rw", "orders.7"},
		{"everything", "*:rw", "orders.7"},
		{"256 exact", strings.Join(exactPatterns(256), ","), "room.128"},
		{"256 of the worst", strings.Join(many, ","), strings.Repeat("a", 128)},
	} {
		b.Run(bb.name, func(b *testing.B) {
			rooms, err := ParsePermissions(bb.patterns)
			if err != nil {
				b.Fatal(err)
			}
			identity := &Identity{Permissions: rooms}
			b.ReportAllocs()
			for b.Loop() {
				identity.May(message.Room(bb.room), Join)
			}
		})
	}
}

func exactPatterns(n int) []string {
	var list []string
	for name := range manyRooms(n) {
		list = append(list, name+":r")
	}
	return list
}

package auth

import (
	"encoding/base64"
	"encoding/json"
	"testing"
	"testing/synctest"
)

// Tokens made by others: the examples of RFC 7515, appendix A, and RFC 8037,
// appendix A.4, byte for byte. The payload of the first three is {"iss":"joe",
// "exp":1300819380, ...}. It names no user, so a valid signature gives ErrUser, in
// a bubble whose clock begins in 2000.
const (
	rfcPayload = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"

	rfcHS256Key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"
	rfcHS256    = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9." + rfcPayload + ".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"

	rfcRS256JWK = `{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}`
	rfcRS256    = "eyJhbGciOiJSUzI1NiJ9." + rfcPayload + ".cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"

	rfcES256JWK = `{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}`
	rfcES256    = "eyJhbGciOiJFUzI1NiJ9." + rfcPayload + ".DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"

	// The payload is a sentence, so a valid signature gives ErrMalformed.
	rfcEdDSAJWK = `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`
	rfcEdDSA    = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
)

func TestTokensOfTheRFCs(t *testing.T) {
	key := must(base64.RawURLEncoding.DecodeString(rfcHS256Key))
	for _, tt := range []struct {
		name, jwk, token string
		right            error
	}{
		{"RFC 7515 A.1, HS256", "", rfcHS256, ErrUser},
		{"RFC 7515 A.2, RS256", rfcRS256JWK, rfcRS256, ErrUser},
		{"RFC 7515 A.3, ES256", rfcES256JWK, rfcES256, ErrUser},
		{"RFC 8037 A.4, EdDSA", rfcEdDSAJWK, rfcEdDSA, ErrMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := Config{JWTSecrets: []string{string(key)}}
				if tt.jwk != "" {
					var m jsonObject
					if err := json.Unmarshal([]byte(tt.jwk), &m); err != nil {
						t.Fatal(err)
					}
					cfg = newIssuer(m).inMemory()
				}
				w := openVerifier(t, cfg)
				w.refuses(tt.token, tt.right)
				// One character of the payload, then one of the signature, is
				// changed.
				at := len(tt.token) - 90
				w.refuses(tt.token[:at]+flip(tt.token[at])+tt.token[at+1:], ErrSignature)
				at = len(tt.token) - 20
				w.refuses(tt.token[:at]+flip(tt.token[at])+tt.token[at+1:], ErrSignature)
			})
		})
	}
	// Outside of the bubble the first three have expired long ago.
	openVerifier(t, Config{JWTSecrets: []string{string(key)}}).refuses(rfcHS256, ErrExpired)
}

// flip returns another character of the alphabet.
func flip(c byte) string {
	if c == 'A' {
		return "B"
	}
	return "A"
}

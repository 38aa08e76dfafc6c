package auth

import (
	"crypto/ecdh"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"
)

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func TestValidKeyFiles(t *testing.T) {
	pkcs1 := block("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&rsaKey().PublicKey))
	w := openVerifier(t, Config{KeyFile: writeKeyFile(t, "The keys of 2026.\n\n"+pemOf(edKey())+"\n# the old one\n"+pkcs1+"\nthe end\n")})
	w.accepts(sign(edKey(), nil))
	w.accepts(sign(rsaKey(), nil))
	openVerifier(t, Config{KeyFile: writeKeyFile(t, strings.ReplaceAll(pemOf(ecKey()), "\n", "\r\n"))}).accepts(sign(ecKey(), nil))
	openVerifier(t, Config{KeyFile: writeKeyFile(t, strings.Repeat(pemOf(ecKey()), maxKeys))}).accepts(sign(ecKey(), nil))
}

func TestInvalidKeyFiles(t *testing.T) {
	good := pemOf(rsaKey())
	small := &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 1023), E: 65537}
	huge := &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 8192), E: 65537}
	even := &rsa.PublicKey{N: rsaKey().N, E: 65538}
	pkix := func(key any) string { return block("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(key))) }
	x25519 := must(ecdh.X25519().GenerateKey(rand.Reader)).PublicKey()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert := must(x509.CreateCertificate(rand.Reader, template, template, ecKey().Public(), ecKey()))
	tests := []struct{ name, content, says string }{
		{"an empty file", "", "no PEM block"},
		{"something else", "hello", "no PEM block"},
		{"DER", string(must(x509.MarshalPKIXPublicKey(rsaKey().Public()))), "no PEM block"},
		{"a JWKS", jwkSet(jwk(rsaKey(), nil)), "no PEM block"},
		{"a private key", block("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(ecKey()))), "private key, which this service must not have"},
		{"a private RSA key", block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey())), "openssl pkey -pubout"},
		{"an encrypted private key", block("ENCRYPTED PRIVATE KEY", []byte("x")), "private key"},
		{"an OpenSSH key", block("OPENSSH PRIVATE KEY", []byte("x")), "private key"},
		{"a private key behind a good one", good + block("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(ecKey()))), "block 2 is a private key"},
		{"a certificate", block("CERTIFICATE", cert), "openssl x509 -pubkey"},
		{"a block of something", block("PUBLIC KEY", []byte("junk")), "can't be read as a public key"},
		{"an empty block", block("PUBLIC KEY", nil), "can't be read as a public key"},
		{"PKCS #1 in the wrong block", block("PUBLIC KEY", x509.MarshalPKCS1PublicKey(&rsaKey().PublicKey)), "can't be read as a public key"},
		{"parameters of a curve", block("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}) + pemOf(ecKey()), "block 1"},
		{"a small RSA key", pkix(small), "RSA key of 1024 bits; it must have 2048"},
		{"a huge RSA key", pkix(huge), "8193 bits"},
		{"an even exponent", pkix(even), "exponent"},
		{"another curve", pemOf(ec384()), "EC key on P-384; it must be on P-256"},
		{"a key for an exchange", pkix(x25519), "neither RSA nor EC nor Ed25519"},
		{"a block without its end", good + good[:100], "1 of 2 PEM blocks"},
		{"a block that is damaged", strings.Replace(good, "\n", "\n!", 1), "0 of 1 PEM blocks"},
		{"too many keys", strings.Repeat(pemOf(ecKey()), maxKeys+1), "17 keys in it, over 16"},
		{"a huge file", good + strings.Repeat("\n", maxKeyFile), "over 65536 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := writeKeyFile(t, tt.content)
			_, err := readKeyFile(path)
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), tt.says) || !strings.HasPrefix(err.Error(), "AUTH_KEY_FILE="+path) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v: does not say %q", err, tt.says)
			}
		})
	}
}

func TestSecretsAreNotDecoded(t *testing.T) {
	// A secret is not decoded from base64: the text itself is the key.
	text := "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA=="
	w := openVerifier(t, Config{JWTSecrets: []string{text}})
	w.accepts(sign(text, nil))
	w.refuses(sign("secret-secret-secret-secret-secret", nil), ErrSignature)
}

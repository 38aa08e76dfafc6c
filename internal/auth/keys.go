package auth

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/golang-jwt/jwt/v5"
)

// The algorithms, one for each kind of key. The key decides the algorithm, so that
// a token can't have a public key used as a secret.
const (
	hs256 = "HS256" // a secret
	rs256 = "RS256" // RSA
	es256 = "ES256" // EC on P-256
	eddsa = "EdDSA" // Ed25519
)

// methods check signatures. An algorithm that is not here is never accepted, above
// all none.
var methods = map[string]jwt.SigningMethod{
	hs256: jwt.SigningMethodHS256,
	rs256: jwt.SigningMethodRS256,
	es256: jwt.SigningMethodES256,
	eddsa: jwt.SigningMethodEdDSA,
}

// Bounds on keys. Each signature is tried with every key of its kind, so their
// number bounds the work that an attacker can cause.
const (
	minSecret  = 32 // RFC 7518 §3.2: at least the size of the hash, in bytes
	minRSA     = 2048
	maxRSA     = 8192 // bits; a check takes longer with larger keys
	maxKeys    = 16   // in AUTH_JWT_SECRET, and in AUTH_KEY_FILE
	maxKeyFile = 64 << 10
)

// A key is a public key or a secret that checks signatures.
type key struct {
	algorithm string
	material  any // []byte, *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
}

// publicKey returns a key with the one algorithm of its kind. Its errors continue a
// sentence that begins with the key.
func publicKey(material any) (key, error) {
	switch k := material.(type) {
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSA || bits > maxRSA {
			return key{}, fmt.Errorf("is an RSA key of %d bits; it must have %d to %d", bits, minRSA, maxRSA)
		}
		if k.E < 3 || k.E%2 == 0 {
			return key{}, errors.New("is an RSA key with an exponent that can't be right")
		}
		return key{rs256, k}, nil
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return key{}, fmt.Errorf("is an EC key on %s; it must be on P-256", k.Curve.Params().Name)
		}
		return key{es256, k}, nil
	case ed25519.PublicKey:
		return key{eddsa, k}, nil
	}
	return key{}, errors.New("is neither RSA nor EC nor Ed25519")
}

// secretKeys validates AUTH_JWT_SECRET.
func secretKeys(secrets []string) ([]key, error) {
	if len(secrets) > maxKeys {
		return nil, fmt.Errorf("AUTH_JWT_SECRET: there are %d secrets, over %d; remove those that no valid token was signed with", len(secrets), maxKeys)
	}
	var keys []key
	for i, s := range secrets {
		switch {
		case strings.Contains(s, "-----BEGIN"):
			return nil, fmt.Errorf("AUTH_JWT_SECRET: secret %d is a PEM file; give public keys by AUTH_KEY_FILE", i+1)
		case len(s) < minSecret:
			return nil, fmt.Errorf("AUTH_JWT_SECRET: secret %d has %d bytes; HS256 needs at least %d: make one with openssl rand -base64 48", i+1, len(s), minSecret)
		}
		keys = append(keys, key{hs256, []byte(s)})
	}
	return keys, nil
}

// readKeyFile reads AUTH_KEY_FILE.
func readKeyFile(path string) ([]key, error) {
	content, err := readBounded(path)
	if err != nil {
		return nil, fmt.Errorf("AUTH_KEY_FILE=%s: the file can't be used: %w", path, err)
	}
	keys, err := parseKeys(content)
	if err != nil {
		return nil, fmt.Errorf("AUTH_KEY_FILE=%s: %w", path, err)
	}
	return keys, nil
}

// parseKeys reads public keys in PEM, one after the other.
func parseKeys(content []byte) ([]key, error) {
	var keys []key
	blocks := strings.Count(string(content), "-----BEGIN")
	for n := 1; ; n++ {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil {
			break
		}
		k, err := parseBlock(block)
		if err != nil {
			return nil, fmt.Errorf("block %d %w", n, err)
		}
		keys = append(keys, k)
	}
	switch {
	case blocks == 0:
		return nil, errors.New("there is no PEM block in it; write public keys with openssl pkey -pubout")
	case len(keys) != blocks:
		return nil, fmt.Errorf("%d of %d PEM blocks can be read; the others are damaged", len(keys), blocks)
	case len(keys) > maxKeys:
		return nil, fmt.Errorf("there are %d keys in it, over %d", len(keys), maxKeys)
	}
	return keys, nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // opened for reading only
	content, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err == nil && len(content) > maxKeyFile {
		err = fmt.Errorf("it has over %d bytes", maxKeyFile)
	}
	return content, err
}

// parseBlock reads one public key. Its errors continue a sentence that begins with
// the block.
func parseBlock(block *pem.Block) (key, error) {
	switch {
	case strings.Contains(block.Type, "PRIVATE KEY"):
		return key{}, errors.New("is a private key, which this service must not have; write its public part with openssl pkey -pubout")
	case block.Type == "CERTIFICATE":
		return key{}, errors.New("is a certificate; write its key with openssl x509 -pubkey -noout")
	}
	material, err := x509.ParsePKIXPublicKey(block.Bytes)
	if block.Type == "RSA PUBLIC KEY" {
		material, err = x509.ParsePKCS1PublicKey(block.Bytes)
	}
	if err != nil {
		return key{}, fmt.Errorf("is a %.40q that can't be read as a public key; write one with openssl pkey -pubout", block.Type)
	}
	return publicKey(material)
}

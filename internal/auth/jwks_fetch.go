package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/MicahParks/jwkset"
)

// Bounds on a key set.
const (
	maxJWKS     = 256 << 10 // bytes
	maxJWKSKeys = 64
)

// jwksClient returns a client that does not follow redirects: only the operator
// decides where keys come from. It trusts roots; nil means the system's.
func jwksClient(given *http.Client, roots *x509.CertPool) *http.Client {
	client := &http.Client{Transport: &http.Transport{
		Proxy:           http.ProxyFromEnvironment,
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		// The next fetch is minutes away, and a connection kept open would be stale
		// by then.
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
	}}
	if given != nil {
		own := *given
		client = &own
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return client
}

// download fetches the set once. skipped says which keys were left out and why; it
// is the same text for the same reasons.
func (j *jwks) download(ctx context.Context) (keys []jwkset.JWK, skipped string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, j.url, nil)
	if err != nil {
		return nil, "", err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := jwksClient(j.given, j.readRoots()).Do(req)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = resp.Body.Close() }() // the body was read to its end, or is not needed
	switch {
	case resp.StatusCode >= 300 && resp.StatusCode < 400:
		return nil, "", fmt.Errorf("it answered %d, a redirect: set AUTH_JWKS_URL to where it leads", resp.StatusCode)
	case resp.StatusCode != http.StatusOK:
		return nil, "", fmt.Errorf("it answered %d", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxJWKS+1))
	if err != nil {
		return nil, "", err
	}
	if len(body) > maxJWKS {
		return nil, "", fmt.Errorf("it answered with over %d bytes", maxJWKS)
	}
	return parseJWKS(body)
}

// readRoots returns the authorities of the system and of certFile as it is now. While
// the file can't be used, it returns those that were read last.
func (j *jwks) readRoots() *x509.CertPool {
	if j.certFile == "" {
		return nil
	}
	content, err := os.ReadFile(j.certFile)
	roots, systemErr := x509.SystemCertPool()
	if systemErr != nil {
		roots = x509.NewCertPool()
	}
	if err == nil && !roots.AppendCertsFromPEM(content) {
		err = errors.New("there is no certificate in it")
	}
	if err == nil {
		j.roots = roots
	} else if !j.noRoots {
		j.log.Warn("SSL_CERT_FILE can't be used; the authorities read before are kept", "file", j.certFile, "error", err)
	}
	j.noRoots = err != nil
	return j.roots
}

// parseJWKS reads a set, and leaves out keys that can't check tokens.
func parseJWKS(body []byte) (keys []jwkset.JWK, summary string, err error) {
	var set struct {
		Keys *[]json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(body, &set); err != nil || set.Keys == nil {
		return nil, "", errors.New("it answered with something that is no JSON object with a list keys")
	}
	skipped := make(map[string]int)
	for i, raw := range *set.Keys {
		if i >= maxJWKSKeys {
			skipped[fmt.Sprintf("there are over %d", maxJWKSKeys)] = len(*set.Keys) - maxJWKSKeys
			break
		}
		if k, err := parseJWK(raw); err != nil {
			skipped[err.Error()]++
		} else {
			keys = append(keys, k)
		}
	}
	var reasons []string
	for _, reason := range slices.Sorted(maps.Keys(skipped)) {
		reasons = append(reasons, fmt.Sprintf("%d: %s", skipped[reason], reason))
	}
	return keys, strings.Join(reasons, "; "), nil
}

// parseJWK returns a key for one of our algorithms, with alg set. There are few
// different errors, so that they can be counted, and they contain nothing of the
// key.
func parseJWK(raw json.RawMessage) (jwkset.JWK, error) {
	var m jwkset.JWKMarshal
	if err := json.Unmarshal(raw, &m); err != nil {
		return jwkset.JWK{}, errors.New("can't be read")
	}
	switch {
	case m.KTY == jwkset.KtyOct:
		return jwkset.JWK{}, errors.New("a secret that is shown to everybody proves nothing")
	case m.D != "" || m.P != "" || m.Q != "" || m.K != "":
		return jwkset.JWK{}, errors.New("a private key that is shown to everybody proves nothing; replace it")
	case m.USE != "" && m.USE != jwkset.UseSig, len(m.KEYOPS) > 0 && !slices.Contains(m.KEYOPS, jwkset.KeyOpsVerify):
		return jwkset.JWK{}, errors.New("is not for signatures")
	case len(m.KID) > maxKeyID:
		return jwkset.JWK{}, fmt.Errorf("has a kid of over %d bytes", maxKeyID)
	}
	// The certificates are not used, and a broken one would make a good key
	// unreadable.
	m.X5C, m.X5T, m.X5TS256, m.X5U = nil, "", "", ""
	read, err := jwkset.NewJWKFromMarshal(m, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{})
	if err != nil {
		return jwkset.JWK{}, errors.New("can't be read, or is of a kind that is not supported")
	}
	k, err := publicKey(read.Key())
	if err != nil {
		return jwkset.JWK{}, err
	}
	if m.ALG != "" && string(m.ALG) != k.algorithm {
		return jwkset.JWK{}, fmt.Errorf("is for an algorithm other than %s", k.algorithm)
	}
	// tryKeys compares a token's alg with the key's.
	m.ALG = jwkset.ALG(k.algorithm)
	if read, err = jwkset.NewJWKFromMarshal(m, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{}); err != nil {
		return jwkset.JWK{}, errors.New("can't be read")
	}
	return read, nil
}

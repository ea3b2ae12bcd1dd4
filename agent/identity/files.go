package identity

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/axion/runner-agent/internal/atomicfile"
)

const (
	keyFile        = "key.pem"        // ECDSA P-256, PKCS#8
	encryptionFile = "encryption.pem" // X25519, PKCS#8
	memberFile     = "identity.json"  // what the plane gave

	privateMode  = 0o600
	keyBlock     = "PRIVATE KEY"
	maxFileBytes = 1 << 20
)

// files is the state folder. Every file in it is private: the access to Kafka holds a password.
type files struct{ dir string }

// sweep removes the temporary files that a crash left behind.
func (f files) sweep() error {
	for _, name := range []string{keyFile, encryptionFile, memberFile} {
		left, err := filepath.Glob(filepath.Join(f.dir, atomicfile.Temporary(name)))
		if err != nil {
			return err
		}
		for _, path := range left {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// damagedError says that a file is there but cannot be used. The file has been put aside, and what could be made anew has been.
type damagedError struct {
	path string
	err  error
}

func (e *damagedError) Error() string { return fmt.Sprintf("%s is damaged: %v", e.path, e.err) }
func (e *damagedError) Unwrap() error { return e.err }

// loadKey returns the agent's key. If there is none, or if it is damaged, it is made, and in the second case a *damagedError comes with it.
func (f files) loadKey() (*ecdsa.PrivateKey, error) {
	return loadKey[*ecdsa.PrivateKey](f, keyFile, f.newKey, func(k *ecdsa.PrivateKey) bool { return k.Curve == elliptic.P256() })
}

// loadEncryptionKey does the same for the X25519 key.
func (f files) loadEncryptionKey() (*ecdh.PrivateKey, error) {
	return loadKey[*ecdh.PrivateKey](f, encryptionFile, f.newEncryptionKey, func(k *ecdh.PrivateKey) bool { return k.Curve() == ecdh.X25519() })
}

func loadKey[K any](f files, name string, make func() (K, error), good func(K) bool) (K, error) {
	var none K
	data, err := f.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return make()
	}
	if err != nil {
		return none, err
	}
	key, err := parseKey[K](data)
	if err == nil && good(key) {
		return key, nil
	}
	if err == nil {
		err = errors.New("it is a key of another kind")
	}
	damaged, asideErr := f.putAside(name, err)
	if asideErr != nil {
		return none, asideErr
	}
	key, err = make()
	if err != nil {
		return none, err
	}
	return key, damaged
}

func parseKey[K any](data []byte) (K, error) {
	var none K
	block, rest := pem.Decode(data)
	if block == nil || block.Type != keyBlock || len(bytes.TrimSpace(rest)) > 0 {
		return none, fmt.Errorf("it does not hold one PEM block %q", keyBlock)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return none, errors.New("its key cannot be read") // the cause could quote the key
	}
	key, ok := parsed.(K)
	if !ok {
		return none, errors.New("it is a key of another kind")
	}
	return key, nil
}

// newKey makes and writes a new key in the place of the old one.
func (f files) newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return key, f.writeKey(keyFile, key)
}

func (f files) newEncryptionKey() (*ecdh.PrivateKey, error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return key, f.writeKey(encryptionFile, key)
}

func (f files) writeKey(name string, key any) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(f.dir, name), pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), privateMode)
}

// loadMembership returns what the plane gave for that key; nil if there is nothing. A file that cannot be used is put aside, with a *damagedError.
func (f files) loadMembership(key *ecdsa.PrivateKey) (*membership, error) {
	data, err := f.read(memberFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m, parseErr := parseMembership(data, key)
	if parseErr == nil {
		return m, nil
	}
	damaged, err := f.putAside(memberFile, parseErr)
	if err != nil {
		return nil, err
	}
	return nil, damaged
}

func (f files) saveMembership(m *membership) error {
	stored, err := m.stored()
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(stored, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the identity: %w", err)
	}
	return atomicfile.Write(filepath.Join(f.dir, memberFile), append(data, '\n'), privateMode)
}

// read reads a file of bounded size and takes away rights that others have to it.
func (f files) read(name string) (data []byte, err error) {
	path := filepath.Join(f.dir, name)
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		if err := file.Chmod(privateMode); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(io.LimitReader(file, maxFileBytes))
}

// putAside renames a damaged file, so that a person can look at it.
func (f files) putAside(name string, why error) (damaged *damagedError, err error) {
	path := filepath.Join(f.dir, name)
	if err := os.Rename(path, path+".damaged"); err != nil {
		return nil, err
	}
	return &damagedError{path: path, err: why}, nil
}

package fence

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
	"github.com/klauspost/compress/zstd"
)

const (
	// MaxManifestBytes bounds a compressed manifest. Of a larger one only the digest is kept.
	MaxManifestBytes  = 512 << 10
	labelManifestOf   = "axion.manifest-of" // the stack's name
	manifestNameBytes = 12
)

// Manifest says what a generation is made of, for who has to put it back. It is kept in the Swarm, where whoever may read config objects can read it: it must
// hold nothing secret.
type Manifest struct {
	digest string
	body   []byte // compressed; nil if it is too large
}

// NewManifest encodes content as JSON.
func NewManifest(content any) (*Manifest, error) {
	text, err := json.Marshal(content)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	sum := sha256.Sum256(text)
	m := &Manifest{digest: hex.EncodeToString(sum[:])}
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	defer w.Close()
	if body := w.EncodeAll(text, nil); len(body) <= MaxManifestBytes {
		m.body = body
	}
	return m, nil
}

// name is of one generation's manifest: removing an older one can never hit it.
func (m *Manifest) name(stack string, generation uint64) string {
	return fmt.Sprintf("%s%s-%d-%s", manifestPrefix, hashOf(stack)[:16], generation, m.digest[:manifestNameBytes])
}

// keep makes sure that the manifest is in the Swarm.
func (m *Manifest) keep(ctx context.Context, api client.APIClient, stack, name string) error {
	if m.body == nil {
		return nil
	}
	_, _, err := api.ConfigInspectWithRaw(ctx, name)
	if err == nil || !errdefs.IsNotFound(err) {
		return err
	}
	_, err = api.ConfigCreate(ctx, swarm.ConfigSpec{
		Annotations: swarm.Annotations{Name: name, Labels: map[string]string{labelManifestOf: stack, labelDigest: m.digest}}, Data: m.body,
	})
	if _, _, look := api.ConfigInspectWithRaw(ctx, name); look == nil {
		return nil
	}
	return err
}

// manifests lists the manifests of a stack: names by id.
func manifests(ctx context.Context, api client.APIClient, stack string) (map[string]string, error) {
	configs, err := api.ConfigList(ctx, swarm.ConfigListOptions{Filters: filters.NewArgs(filters.Arg("label", labelManifestOf+"="+stack))})
	names := make(map[string]string, len(configs))
	for _, c := range configs {
		names[c.ID] = c.Spec.Name
	}
	return names, err
}

// prune removes the listed manifests that the head does not keep. The list must be older than the change of the head that keep comes from: then no newer
// claimant's manifest is in it.
func prune(ctx context.Context, api client.APIClient, listed map[string]string, keep []string) error {
	for id, name := range listed {
		if slices.Contains(keep, name) {
			continue
		}
		if err := api.ConfigRemove(ctx, id); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("manifest %s cannot be removed: %w", name, err)
		}
	}
	return nil
}

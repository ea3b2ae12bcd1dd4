package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/axion/runner-agent/proto/failure"
)

const (
	// MaxGeneration is the greatest generation that is believed or given: every JSON reader can hold it exactly.
	MaxGeneration = 1 << 53
	// maxStacks is how many stacks of one cluster are remembered: an agent that invents names cannot fill the database.
	maxStacks = 10_000
)

// Generation returns the newest known generation of a stack; 0 if there is none.
func (l *Ledger) Generation(ctx context.Context, clusterID, stack string) (uint64, error) {
	return knownGeneration(ctx, l.db, clusterID, stack)
}

// querier is a database or a transaction.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

func knownGeneration(ctx context.Context, q querier, clusterID, stack string) (uint64, error) {
	var n uint64
	err := q.QueryRowContext(ctx, `SELECT generation FROM generations WHERE cluster_id = $1 AND stack = $2`, clusterID, stack).Scan(&n)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, fmt.Errorf("read generation of stack %s in cluster %s: %w", stack, clusterID, err)
	}
	return n, nil
}

func noteGeneration(ctx context.Context, tx querier, clusterID, stack string, n uint64) error {
	if stack == "" || n == 0 {
		return nil
	}
	if n > MaxGeneration {
		return failure.New(failure.Invalid, "generation_too_large", stack, "generation %d of stack %s in cluster %s is over %d", n, stack, clusterID, uint64(MaxGeneration))
	}
	var stacks int
	if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM generations WHERE cluster_id = $1 AND stack <> $2`, clusterID, stack).Scan(&stacks); err != nil {
		return fmt.Errorf("count stacks of cluster %s: %w", clusterID, err)
	}
	if stacks >= maxStacks {
		return failure.New(failure.Invalid, "too_many_stacks", stack, "stack %s is one too many: cluster %s already has %d", stack, clusterID, stacks)
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO generations (cluster_id, stack, generation) VALUES ($1, $2, $3)
		ON CONFLICT (cluster_id, stack) DO UPDATE SET generation = excluded.generation WHERE excluded.generation > generations.generation`,
		clusterID, stack, int64(n))
	if err != nil {
		return fmt.Errorf("store generation %d of stack %s in cluster %s: %w", n, stack, clusterID, err)
	}
	return nil
}

// nextGeneration gives out the next generation of a stack.
//
// A ServiceScale names a service and no stack, and "a_b_c" may be service "b_c" of stack "a" or service "c" of stack "a_b". So every known stack that could
// own the service takes part: the number is greater than all of theirs and becomes the newest of each. A skipped number does no harm, a repeated one would.
// Where no such stack is known the service's own name is counted for; what an agent then answers makes its stack known.
func nextGeneration(ctx context.Context, tx querier, clusterID string, stacks []string) (generation uint64, err error) {
	for _, name := range stacks {
		known, err := knownGeneration(ctx, tx, clusterID, name)
		if err != nil {
			return 0, err
		}
		generation = max(generation, known)
	}
	generation++
	for _, name := range stacks {
		if err := noteGeneration(ctx, tx, clusterID, name, generation); err != nil {
			return 0, err
		}
	}
	return generation, nil
}

// owners returns the known stacks that a service of that name may belong to, shortest first, and the service's own name if it is known as a stack or if
// there is none else.
func owners(ctx context.Context, tx querier, clusterID, service string) ([]string, error) {
	var names []string
	for i := range len(service) {
		if service[i] != '_' || i == 0 {
			continue
		}
		known, err := knownGeneration(ctx, tx, clusterID, service[:i])
		if err != nil {
			return nil, err
		}
		if known > 0 {
			names = append(names, strings.Clone(service[:i]))
		}
	}
	known, err := knownGeneration(ctx, tx, clusterID, service)
	if err != nil {
		return nil, err
	}
	if known > 0 || len(names) == 0 {
		names = append(names, service)
	}
	return names, nil
}

package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	runnerv1 "github.com/axion/runner-agent/proto/axion/runner/v1"
	"github.com/axion/runner-agent/proto/envelope"
)

// The types of which a stack is made.
const (
	deployType   = envelope.TypePrefix + "StackDeploy"
	removeType   = envelope.TypePrefix + "StackRemove"
	rollbackType = envelope.TypePrefix + "StackRollback"
	scaleType    = envelope.TypePrefix + "ServiceScale"
)

// Why the data of the last command is not there: codes, and the sentence's end for each.
const (
	missingUnknown = "not_known"
	missingForeign = "not_from_here"
	missingTooMuch = "too_much_kept"
	missingOff     = "bundles_not_kept"
)

var missingText = map[string]string{
	missingUnknown: "no command for it has succeeded since the plane keeps them",
	missingForeign: "its last command did not come from here",
	missingTooMuch: "its bundle was forgotten in favour of newer ones",
	missingOff:     "the plane does not keep bundles",
}

// lastCommand is a command that a stack is made of.
type lastCommand struct {
	stack, service string // service is empty for the whole stack's
	typ            string
	generation     uint64
	id             string
	missing        string
	data           []byte
}

// keepLast keeps the data of a command that has succeeded, if the stack is made of it from now on. Call it before the command is closed, which erases its data.
func (l *Ledger) keepLast(ctx context.Context, tx querier, clusterID, commandID string, m *runnerv1.CommandOutcome) error {
	if m.GetStatus() != runnerv1.OutcomeStatus_OUTCOME_STATUS_SUCCEEDED {
		return nil
	}
	last := lastCommand{stack: m.GetStack(), typ: m.GetType(), generation: m.GetGeneration(), id: commandID, missing: missingForeign}
	c, err := scanCommand(tx.QueryRowContext(ctx, `SELECT `+commandColumns+`, data FROM commands WHERE id = $1 AND cluster_id = $2`, commandID, clusterID).Scan, &last.data)
	switch {
	case err == nil:
		last.typ, last.generation, last.missing = c.Type, c.Generation, ""
		if last.stack == "" || !c.StackIsGuess() {
			last.stack = c.Stack
		}
		if last.typ == scaleType {
			last.service = c.Subject
		}
	case !errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("read command %s: %w", commandID, err)
	case last.typ == scaleType:
		return nil // which service it was for is not told
	}
	switch last.typ {
	case deployType, removeType, rollbackType:
		if err := endAlarm(ctx, tx, clusterID, last.stack, last.generation); err != nil {
			return err
		}
	case scaleType:
	default:
		return nil
	}
	if last.typ == deployType && last.missing == "" && l.cfg.ForgetBundles {
		last.missing, last.data = missingOff, nil
	}
	return l.insertLast(ctx, tx, clusterID, last)
}

func (l *Ledger) insertLast(ctx context.Context, tx querier, clusterID string, last lastCommand) error {
	known, err := knownGeneration(ctx, tx, clusterID, last.stack)
	if err != nil || known == 0 { // a stack too many, see noteGeneration
		return err
	}
	var newer int
	err = tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM last_commands WHERE cluster_id = $1 AND stack = $2 AND service IN ('', $3) AND generation >= $4`,
		clusterID, last.stack, last.service, int64(last.generation)).Scan(&newer)
	if err != nil {
		return fmt.Errorf("look for newer commands of stack %s: %w", last.stack, err)
	}
	if newer > 0 {
		return nil
	}
	// A deployment or removal takes the place of all that was before it, a scaling that of the same service's.
	_, err = tx.ExecContext(ctx, `DELETE FROM last_commands WHERE cluster_id = $1 AND stack = $2 AND ($3 = '' OR service = $3) AND generation < $4`,
		clusterID, last.stack, last.service, int64(last.generation))
	if err != nil {
		return fmt.Errorf("forget older commands of stack %s: %w", last.stack, err)
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO last_commands (cluster_id, stack, service, type, generation, command_id, kept_at, missing, data)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		clusterID, last.stack, last.service, last.typ, int64(last.generation), last.id, l.now().UnixNano(), last.missing, last.data)
	if err != nil {
		return fmt.Errorf("keep command %s: %w", last.id, err)
	}
	_, err = tx.ExecContext(ctx, `UPDATE last_commands SET data = NULL, missing = $1 WHERE cluster_id = $2 AND type = $3 AND command_id IN
		(SELECT command_id FROM (SELECT command_id, SUM(LENGTH(data)) OVER (ORDER BY kept_at DESC, command_id ROWS UNBOUNDED PRECEDING) AS total
			FROM last_commands WHERE cluster_id = $2 AND type = $3 AND data IS NOT NULL) AS counted WHERE total > $4)`,
		missingTooMuch, clusterID, deployType, l.cfg.MaxKeptBytes)
	if err != nil {
		return fmt.Errorf("forget surplus bundles of cluster %s: %w", clusterID, err)
	}
	return nil
}

// lastCommands returns what a stack is made of, in the order of generations.
func lastCommands(ctx context.Context, tx querier, clusterID, stack string) ([]lastCommand, error) {
	rows, err := tx.QueryContext(ctx, `SELECT stack, service, type, generation, command_id, missing, data FROM last_commands
		WHERE cluster_id = $1 AND stack = $2 ORDER BY generation`, clusterID, stack)
	if err != nil {
		return nil, fmt.Errorf("read last commands of stack %s: %w", stack, err)
	}
	defer rows.Close()
	var out []lastCommand
	for rows.Next() {
		var c lastCommand
		if err := rows.Scan(&c.stack, &c.service, &c.typ, &c.generation, &c.id, &c.missing, &c.data); err != nil {
			return nil, fmt.Errorf("read last command of stack %s: %w", stack, err)
		}
		out = append(out, c)
	}
	return out, rows.Err()
}

// forgetBundles erases the bundles that were kept when they were to be kept.
func (l *Ledger) forgetBundles(ctx context.Context, tx querier) error {
	_, err := tx.ExecContext(ctx, `UPDATE last_commands SET data = NULL, missing = $1 WHERE type = $2 AND data IS NOT NULL`, missingOff, deployType)
	if err != nil {
		return fmt.Errorf("forget bundles: %w", err)
	}
	return nil
}

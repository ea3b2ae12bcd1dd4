package bundle

import (
	"io"
	"sync"

	"github.com/sirupsen/logrus"
)

// logging is held while the process's logrus logger is ours. The loader writes its warnings to that logger and offers no other way to get them; as the
// logger belongs to the process, so must its lock.
var logging sync.Mutex

// captureLog runs f and returns what is logged at level warning or worse meanwhile, instead of printing it.
func captureLog(f func()) []string {
	logging.Lock()
	defer logging.Unlock()
	var hook capture
	logger := logrus.StandardLogger()
	hooks := logger.ReplaceHooks(logrus.LevelHooks{})
	out := logger.Out
	logger.AddHook(&hook)
	logger.SetOutput(io.Discard)
	defer func() {
		logger.SetOutput(out)
		logger.ReplaceHooks(hooks)
	}()
	f()
	return hook.messages()
}

// capture is a logrus hook that keeps messages. Others may log at the same time, hence the lock.
type capture struct {
	mu    sync.Mutex
	texts []string
}

func (*capture) Levels() []logrus.Level {
	return []logrus.Level{logrus.WarnLevel, logrus.ErrorLevel}
}

func (c *capture) Fire(entry *logrus.Entry) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.texts = append(c.texts, entry.Message)
	return nil
}

func (c *capture) messages() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.texts
}

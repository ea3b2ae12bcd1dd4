package kafka

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// fetchTimeout bounds the download of the jars, about 45 MB.
const fetchTimeout = 5 * time.Minute

// pom asks Maven for Kafka and for a logger that writes to standard error.
const pom = `<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>test</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>%s</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
`

// jars returns the folder with the jars of a version. They are fetched the first time.
func jars(tb testing.TB, version string) string {
	tb.Helper()
	for _, program := range []string{"java", "mvn"} {
		if _, err := exec.LookPath(program); err != nil {
			missing(tb, "no %s in PATH: a real Kafka needs Java 17 and Maven (apt-get install openjdk-17-jre-headless maven)", program)
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		missing(tb, "no cache folder for Kafka's jars: %v", err)
	}
	dir := filepath.Join(cache, "axion-tools", "kafka-"+version)
	switch _, err := os.Stat(dir); {
	case err == nil:
		return dir
	case !errors.Is(err, fs.ErrNotExist):
		tb.Fatal(err)
	}
	if err := fetch(tb.Context(), version, dir); err != nil {
		missing(tb, "Kafka %s cannot be fetched: %v", version, err)
	}
	return dir
}

// missing skips the test, or fails it where everything is asked for.
func missing(tb testing.TB, format string, args ...any) {
	tb.Helper()
	if os.Getenv(allVariable) == "all" {
		tb.Fatalf(format, args...)
	}
	tb.Skipf(format, args...)
}

// fetch makes the folder at once when it is complete, so that another process never sees a part of it.
func fetch(ctx context.Context, version, dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), ".kafka-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := os.WriteFile(filepath.Join(work, "pom.xml"), fmt.Appendf(nil, pom, version), 0o644); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "mvn", "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=lib")
	cmd.Dir = work
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("mvn: %w\n%s", err, out.Bytes())
	}
	if err := os.Rename(filepath.Join(work, "lib"), dir); err != nil && !errors.Is(err, fs.ErrExist) { // another process was faster
		return err
	}
	return nil
}

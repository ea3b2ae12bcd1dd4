// Command testimage is the program of the image that tests run as a service: each mode is one way in which a container can behave.
//
//	sleep                     wait for SIGTERM, then exit 0
//	lines N [PREFIX]          print N numbered lines to stdout and as many to stderr, then sleep
//	ticks INTERVAL            print a numbered line every INTERVAL, for ever
//	exit CODE [DELAY]         exit with CODE after DELAY (default at once)
//	http ADDRESS [BODY]       answer 200 and BODY on ADDRESS, for example ":8080"
//	cat FILE...               print the files, then sleep
//	env NAME...               print the named variables as NAME=VALUE, then sleep
//	unhealthy                 sleep; the health check "testimage health" fails
//	healthy                   sleep; the health check "testimage health" succeeds
//	health                    the health check: exit 0 if the container's mode is "healthy", else 1
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// healthyMark exists in a container whose mode is "healthy".
const healthyMark = "/healthy"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	code, err := run(ctx, os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "testimage:", err)
	}
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string) (int, error) {
	if len(args) == 0 {
		args = []string{"sleep"}
	}
	mode, args := args[0], args[1:]
	switch mode {
	case "sleep", "unhealthy":
	case "healthy":
		if err := os.WriteFile(healthyMark, nil, 0o600); err != nil {
			return 70, err
		}
	case "health":
		if _, err := os.Stat(healthyMark); err != nil {
			return 1, fmt.Errorf("not healthy")
		}
		return 0, nil
	case "lines":
		if err := lines(args); err != nil {
			return 64, err
		}
	case "ticks":
		return ticks(ctx, args)
	case "exit":
		return exit(ctx, args)
	case "http":
		return serve(ctx, args)
	case "cat":
		for _, path := range args {
			content, err := os.ReadFile(filepath.Clean(path))
			if err != nil {
				return 66, err
			}
			_, _ = os.Stdout.Write(content)
		}
	case "env":
		for _, name := range args {
			fmt.Printf("%s=%s\n", name, os.Getenv(name))
		}
	default:
		return 64, fmt.Errorf("unknown mode %q", mode)
	}
	<-ctx.Done()
	return 0, nil
}

func arg(args []string, i int, otherwise string) string {
	if i < len(args) {
		return args[i]
	}
	return otherwise
}

func lines(args []string) error {
	n, err := strconv.Atoi(arg(args, 0, ""))
	if err != nil {
		return fmt.Errorf("lines: %w", err)
	}
	prefix := arg(args, 1, "line")
	for i := 1; i <= n; i++ {
		fmt.Printf("%s %d\n", prefix, i)
		fmt.Fprintf(os.Stderr, "%s err %d\n", prefix, i)
	}
	return nil
}

func ticks(ctx context.Context, args []string) (int, error) {
	interval, err := time.ParseDuration(arg(args, 0, ""))
	if err != nil || interval <= 0 {
		return 64, fmt.Errorf("ticks: bad interval %q", arg(args, 0, ""))
	}
	for i := 1; ; i++ {
		fmt.Println("tick", i)
		select {
		case <-ctx.Done():
			return 0, nil
		case <-time.After(interval):
		}
	}
}

func exit(ctx context.Context, args []string) (int, error) {
	code, err := strconv.Atoi(arg(args, 0, ""))
	if err != nil {
		return 64, fmt.Errorf("exit: %w", err)
	}
	delay, err := time.ParseDuration(arg(args, 1, "0s"))
	if err != nil {
		return 64, fmt.Errorf("exit: %w", err)
	}
	select {
	case <-ctx.Done():
	case <-time.After(delay):
	}
	return code, nil
}

func serve(ctx context.Context, args []string) (int, error) {
	body := arg(args, 1, "ok\n")
	server := &http.Server{
		Addr:              arg(args, 0, ":8080"),
		ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, body)
		}),
	}
	go func() {
		<-ctx.Done()
		_ = server.Close()
	}()
	if err := server.ListenAndServe(); err != nil && ctx.Err() == nil {
		return 69, err
	}
	return 0, nil
}

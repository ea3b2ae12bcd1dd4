package cli

import (
	"context"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/axion/runner-agent/ctl/document"
	"github.com/axion/runner-agent/proto/version"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  named(),
		RunE: a.run(func(context.Context, []string) error {
			if a.json() {
				return document.Write(a.env.Stdout, document.Version{
					Version: version.Version, Revision: version.Revisioned(), Go: runtime.Version(), OS: runtime.GOOS, Architecture: runtime.GOARCH,
				})
			}
			_, err := fmt.Fprintln(a.env.Stdout, version.Line("axionctl"))
			return err
		}),
	}
}

package stack

import (
	"fmt"

	"github.com/docker/cli/cli/compose/convert"
	composetypes "github.com/docker/cli/cli/compose/types"

	"github.com/axion/runner-agent/proto/failure"
)

// check converts every service once without asking the engine, so that what docker/cli would only refuse after it has made networks, configs and secrets
// is refused before anything is made. The words are docker/cli's.
func check(stack, apiVersion string, config *composetypes.Config) error {
	for _, service := range config.Services {
		if err := checkService(convert.NewNamespace(stack), apiVersion, service, config); err != nil {
			return failure.New(failure.Invalid, "invalid_compose", service.Name, "service %s: %w", service.Name, err)
		}
	}
	return nil
}

func checkService(namespace convert.Namespace, apiVersion string, service composetypes.ServiceConfig, config *composetypes.Config) error {
	for _, secret := range service.Secrets {
		if _, ok := config.Secrets[secret.Source]; !ok {
			return fmt.Errorf("undefined secret %q", secret.Source)
		}
	}
	for _, object := range service.Configs {
		if _, ok := config.Configs[object.Source]; !ok {
			return fmt.Errorf("undefined config %q", object.Source)
		}
	}
	if service.CredentialSpec.Config != "" {
		return nil // converting it needs the config's id
	}
	_, err := convert.Service(apiVersion, namespace, service, config.Networks, config.Volumes, nil, nil)
	return err
}

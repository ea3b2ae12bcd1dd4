package images

import "testing"

func TestServerOf(t *testing.T) {
	for image, want := range map[string]string{
		"nginx":                               HubServer,
		"library/nginx:1.27":                  HubServer,
		"docker.io/library/nginx":             HubServer,
		"registry.example.com/shop/web":       "registry.example.com",
		"registry.example.com:5000/web:1":     "registry.example.com:5000",
		"localhost/web":                       "localhost",
		"ghcr.io/a/b@sha256:" + digest:        "ghcr.io",
		"127.0.0.1:5000/web@sha256:" + digest: "127.0.0.1:5000",
	} {
		t.Run(image, func(t *testing.T) {
			got, err := ServerOf(image)
			if err != nil || got != want {
				t.Errorf("got %q, %v, want %q", got, err, want)
			}
		})
	}
	for _, image := range []string{"", "Nginx", "a b", "https://example.com/a"} {
		if got, err := ServerOf(image); err == nil {
			t.Errorf("%q gave %q, want an error", image, got)
		}
	}
}

const digest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestServer(t *testing.T) {
	for registry, want := range map[string]string{
		"":                                 HubServer,
		"docker.io":                        HubServer,
		"https://index.docker.io/v1/":      HubServer,
		"registry-1.docker.io":             HubServer,
		"https://registry.example.com/v2/": "registry.example.com",
		"http://registry.example.com:5000": "registry.example.com:5000",
		"registry.example.com:5000":        "registry.example.com:5000",
	} {
		if got := Server(registry); got != want {
			t.Errorf("%q: got %q, want %q", registry, got, want)
		}
	}
}

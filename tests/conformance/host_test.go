// Package conformance drives the installed plugin with other people's code: the client of hashicorp/go-plugin, set up as
// Nomad's agent sets it up. pytest starts one Go test at a time and names the executable and an empty directory.
package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"chv.invalid/hclspec"
	basepb "chv.invalid/proto/base"
	driverpb "chv.invalid/proto/driver"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
)

var handshake = plugin.HandshakeConfig{
	ProtocolVersion:  2,
	MagicCookieKey:   "NOMAD_PLUGIN_MAGIC_COOKIE",
	MagicCookieValue: "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255",
}

var pluginSet = plugin.PluginSet{"base": basePlugin{}, "driver": driverPlugin{}}

type basePlugin struct{ plugin.NetRPCUnsupportedPlugin }

func (basePlugin) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return errors.New("a client") }

func (basePlugin) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return basepb.NewBasePluginClient(conn), nil
}

type driverPlugin struct{ plugin.NetRPCUnsupportedPlugin }

func (driverPlugin) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return errors.New("a client") }

func (driverPlugin) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return &driverClient{DriverClient: driverpb.NewDriverClient(conn), conn: conn}, nil
}

type driverClient struct {
	driverpb.DriverClient
	conn *grpc.ClientConn
}

// host is one plugin process and what the agent has of it.
type host struct {
	t      *testing.T
	client *plugin.Client
	rpc    plugin.ClientProtocol
	cmd    *exec.Cmd // nil after a reattach
	log    *buffer   // what the agent's own logger wrote, JSON
	stderr *buffer   // what the plugin wrote
	base   basepb.BasePluginClient
	driver *driverClient
}

// testDir is an empty directory for this test alone.
func testDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("CHV_TEST_DIR")
	if dir == "" {
		t.Fatal("CHV_TEST_DIR is not set: run these tests with pytest")
	}
	return dir
}

func executable(t *testing.T) string {
	t.Helper()
	path := os.Getenv("CHV_TEST_PLUGIN")
	if path == "" {
		t.Fatal("CHV_TEST_PLUGIN is not set: run these tests with pytest")
	}
	return path
}

// command is the plugin's executable with nothing in its environment that go-plugin does not set.
func command(t *testing.T) *exec.Cmd {
	t.Helper()
	temporary := filepath.Join(testDir(t), "tmp")
	if err := os.MkdirAll(temporary, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(executable(t))
	cmd.Env = append(os.Environ(), "TMPDIR="+temporary, "CHV_ENABLE_FAKE=1")
	return cmd
}

// launch starts the plugin as Nomad does and takes both of its faces.
func launch(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, cmd: command(t), log: &buffer{}, stderr: &buffer{}}
	h.connect(&plugin.ClientConfig{Cmd: h.cmd})
	return h
}

// reattach connects to a plugin that lives already.
func reattach(t *testing.T, to *plugin.ReattachConfig) *host {
	t.Helper()
	h := &host{t: t, log: &buffer{}, stderr: &buffer{}}
	h.connect(&plugin.ClientConfig{Reattach: to})
	return h
}

func (h *host) connect(config *plugin.ClientConfig) {
	h.t.Helper()
	config.HandshakeConfig = handshake
	config.Plugins = pluginSet
	config.AllowedProtocols = []plugin.Protocol{plugin.ProtocolGRPC}
	config.Managed = true
	config.Logger = hclog.New(&hclog.LoggerOptions{
		Name: "host", Level: hclog.Trace, Output: h.log, JSONFormat: true,
	})
	config.Stderr = h.stderr
	h.client = plugin.NewClient(config)
	h.t.Cleanup(func() {
		h.client.Kill()
		if h.t.Failed() {
			h.t.Logf("the agent's log:\n%s", h.log.String())
		}
	})
	var err error
	if h.rpc, err = h.client.Client(); err != nil {
		h.t.Fatalf("launch: %v", err)
	}
	h.base = dispense[basepb.BasePluginClient](h, "base")
	h.driver = dispense[*driverClient](h, "driver")
}

func dispense[T any](h *host, name string) T {
	h.t.Helper()
	raw, err := h.rpc.Dispense(name)
	if err != nil {
		h.t.Fatalf("dispense %s: %v", name, err)
	}
	return raw.(T)
}

// configure sends the plugin block, packed by the real libraries, as the agent does at the third launch.
func (h *host) configure(block map[string]any) {
	h.t.Helper()
	request := &basepb.SetConfigRequest{
		MsgpackConfig: h.packed(block),
		NomadConfig: &basepb.NomadConfig{Driver: &basepb.NomadDriverConfig{
			ClientMinPort: 14000, ClientMaxPort: 14512,
		}},
		PluginApiVersion: "v0.1.0",
	}
	if _, err := h.base.SetConfig(h.context(), request); err != nil {
		h.t.Fatalf("SetConfig: %v", err)
	}
	if _, err := h.driver.Init(h.context(), &driverpb.InitRequest{}); err != nil {
		h.t.Fatalf("Init: %v", err)
	}
}

func (h *host) packed(block map[string]any) []byte {
	h.t.Helper()
	schema, err := h.base.ConfigSchema(h.context(), &basepb.ConfigSchemaRequest{})
	if err != nil {
		h.t.Fatalf("ConfigSchema: %v", err)
	}
	packed, err := hclspec.Encode(schema.GetSpec(), asJSON(h.t, block), nil)
	if err != nil {
		h.t.Fatalf("plugin block: %v", err)
	}
	return packed
}

// fakeBlock is a plugin block for machines of the fake hypervisor in this test's directory.
func fakeBlock(t *testing.T) map[string]any {
	return map[string]any{
		"hypervisor": "fake",
		"data_dir":   filepath.Join(testDir(t), "data"),
		"run_dir":    filepath.Join(testDir(t), "run"),
	}
}

// context is long enough for every unary call.
func (h *host) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	h.t.Cleanup(cancel)
	return ctx
}

// streaming is a context that lives until the test ends or the caller cancels it.
func (h *host) streaming() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	h.t.Cleanup(cancel)
	return ctx, cancel
}

// murder is what kill -9 does to the plugin; returns when the agent has noticed.
func (h *host) murder() {
	h.t.Helper()
	if err := h.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		h.t.Fatal(err)
	}
	eventually(h.t, 3*time.Second, "the agent notices the plugin's death", h.client.Exited)
}

// socketDir is the directory of the plugin's socket.
func (h *host) socketDir() string {
	h.t.Helper()
	return filepath.Dir(h.client.ReattachConfig().Addr.String())
}

// mustEnd is the end that a plugin owes its agent: in time, by itself, with nothing left.
func (h *host) mustEnd() {
	h.t.Helper()
	dir := h.socketDir()
	began := time.Now()
	h.client.Kill()
	if took := time.Since(began); took >= 2*time.Second {
		h.t.Errorf("Kill took %v: the agent waits two seconds and then sends SIGKILL", took)
	}
	if strings.Contains(h.log.String(), "failed to exit gracefully") {
		h.t.Error("the plugin had to be killed")
	}
	if h.cmd != nil && !h.cmd.ProcessState.Success() {
		h.t.Errorf("the plugin ended with %v, expected exit code 0", h.cmd.ProcessState)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		h.t.Errorf("the socket's directory %s is still there (%v)", dir, err)
	}
}

// line is one entry of the agent's log.
type line map[string]any

func (l line) text(key string) string {
	text, _ := l[key].(string)
	return text
}

// lines are what the agent's logger made of the plugin's stderr.
func (h *host) lines() []line {
	h.t.Helper()
	var found []line
	for _, text := range strings.Split(strings.TrimSpace(h.log.String()), "\n") {
		entry := line{}
		if err := json.Unmarshal([]byte(text), &entry); err != nil {
			h.t.Fatalf("the agent's own log: %v in %s", err, text)
		}
		// What was understood has a time of its own; what was not goes to the logger that is named for the executable.
		if entry.text("timestamp") != "" || strings.HasPrefix(entry.text("@module"), "host.chv") {
			found = append(found, entry)
		}
	}
	return found
}

// buffer can be written and read by several goroutines.
type buffer struct {
	lock sync.Mutex
	data bytes.Buffer
}

func (b *buffer) Write(data []byte) (int, error) {
	b.lock.Lock()
	defer b.lock.Unlock()
	return b.data.Write(data)
}

func (b *buffer) String() string {
	b.lock.Lock()
	defer b.lock.Unlock()
	return b.data.String()
}

func asJSON(t *testing.T, value any) []byte {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// eventually fails the test when `holds` does not come true in time.
func eventually(t *testing.T, within time.Duration, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}

// alive says whether a process runs; a zombie does not.
func alive(pid int) bool {
	text, err := os.ReadFile(filepath.Join("/proc", itoa(pid), "stat"))
	if err != nil {
		return false
	}
	rest := text[bytes.LastIndexByte(text, ')')+1:]
	return !bytes.HasPrefix(bytes.TrimSpace(rest), []byte("Z"))
}

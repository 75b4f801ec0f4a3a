# Stands in for Flannel with its host-gw backend: the conflist of this node, routes to the nodes of its LAN, and the
# masquerade rules that Flannel has.
set -eu
in_node() { PATH=/usr/sbin:/usr/bin:/sbin:/bin /bin/busybox chroot /node "$@"; }
own() { grep "^$NODE_NAME " /etc/kube-flannel/nodes; }
read -r name pods address lan <<NODE
$(own)
NODE
cluster=$(sed -n 's/.*"Network": "\([^"]*\)".*/\1/p' /etc/kube-flannel/net-conf.json)

echo 1 > /proc/sys/net/ipv4/ip_forward
while read -r other other_pods via other_lan; do
  if [ "$other_lan" = "$lan" ] && [ "$other" != "$name" ]; then
    in_node ip route replace "$other_pods" via "$via"
  fi
done < /etc/kube-flannel/nodes
in_node iptables-restore --noflush <<RULES
*nat
:FLANNEL-POSTRTG - [0:0]
-A FLANNEL-POSTRTG -s $pods -d $cluster -j RETURN
-A FLANNEL-POSTRTG -s $cluster -d $pods -j RETURN
-A FLANNEL-POSTRTG ! -s $cluster -d $pods -j RETURN
-A FLANNEL-POSTRTG -s $cluster ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s $cluster -d $cluster -j MASQUERADE --random-fully
COMMIT
RULES
in_node iptables -w -t nat -C POSTROUTING -j FLANNEL-POSTRTG 2>/dev/null ||
  in_node iptables -w -t nat -A POSTROUTING -j FLANNEL-POSTRTG

mkdir -p /node/etc/cni/net.d
cat > /node/etc/cni/net.d/.10-flannel.conflist <<CONFLIST
{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true, "forceAddress": false,
      "ipMasq": false, "mtu": 1500, "ipam": {"type": "host-local", "ranges": [[{"subnet": "$pods"}]]}
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
CONFLIST
mv /node/etc/cni/net.d/.10-flannel.conflist /node/etc/cni/net.d/10-flannel.conflist
echo "$name: pods have addresses of $pods"

trap 'exit 0' TERM
while :; do
  sleep 3600 &
  wait $!
done

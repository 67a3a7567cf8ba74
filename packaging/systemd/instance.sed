# Makes cairnd@.service out of cairnd.service.
1s|.*|# One of several members of this host: cairnd@NAME reads /etc/cairn/NAME.toml and keeps its data in /var/lib/cairn/NAME.|
s|^Description=cairn,|Description=cairn member %i,|
s|/etc/cairn/cairnd\.toml|/etc/cairn/%i.toml|
s|/etc/default/cairnd|&@%i|
s|^StateDirectory=cairn$|&/%i|
s|^WorkingDirectory=/var/lib/cairn$|&/%i|
s|^RequiresMountsFor=/var/lib/cairn$|&/%i|
s|/run/credentials/cairnd\.service|/run/credentials/cairnd@NAME.service|
